"""COCO's average precision of boxes and of masks, by pycocotools."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

import numpy as np
from torch import Tensor

from unlabeled.downstream.detection.annotated.images import DetectionImages, Picture, Thing
from unlabeled.downstream.detection.annotated.masks import coco_masks, mask_of, require_pycocotools

Kind = Literal["bbox", "segm"]
INSIDE = 0.5  # least value of a pixel of a predicted mask that belongs to the object; torchvision's and detectron2's


@dataclass(frozen=True)
class AveragePrecision:
    """In per cent; not a number where no object in the images is of that size or class."""

    ap: float  # mean over IoU 0.50, 0.55, … 0.95 and over classes
    ap50: float
    ap75: float
    small: float  # of objects below 32² pixels
    medium: float
    large: float  # of objects above 96² pixels
    classes: tuple[float, ...]  # AP of label 1, 2, …

    @property
    def cells(self) -> list[str]:
        """Returns AP, AP50, AP75 and AP by size, as text."""
        return [
            "–" if each != each else f"{each:.2f}"
            for each in (self.ap, self.ap50, self.ap75, self.small, self.medium, self.large)
        ]


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, on the CPU; masks are kept as run lengths."""

    boxes: np.ndarray  # float64 [N, 4]: left, top, right, bottom, pixels
    labels: np.ndarray  # int64 [N], from 1
    scores: np.ndarray  # float64 [N]
    masks: list[Any] | None  # run lengths of pycocotools


def detections(found: dict[str, Tensor]) -> Detections:
    """Returns the output of a detector for one image: boxes, labels, scores, and masks [N, 1, h, w] if it has them."""
    masks = None
    if "masks" in found:
        drawn = (found["masks"][:, 0].float() >= INSIDE).byte().cpu().numpy()
        masks = [coco_masks().encode(np.asfortranarray(each)) for each in drawn]
    boxes, scores = (found[key].double().cpu().numpy() for key in ("boxes", "scores"))
    return Detections(boxes.reshape(-1, 4), found["labels"].cpu().numpy(), scores, masks)


def average_precision(images: DetectionImages, found: Sequence[Detections], kind: Kind) -> AveragePrecision:
    """Measures the detections of all images, one for each image and in their order.

    What lies in a crowd, and what is found beyond the 100 surest of an image, does not count (COCO's protocol).

    Args:
        images: with their objects.
        found: of each image.
        kind: ``bbox`` or ``segm``.

    Raises:
        UserError: pycocotools is not installed.
    """
    require_pycocotools()
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(StringIO()):  # it prints what it does
        measured = COCOeval(_truth(images, kind), _answers(images, found, kind), kind)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    precision = measured.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]: of all sizes, 100 detections
    ap, ap50, ap75, small, medium, large = (_per_cent(value) for value in measured.stats[:6])
    return AveragePrecision(ap, ap50, ap75, small, medium, large, _by_class(precision))


def _per_cent(value: float) -> float:
    return float("nan") if value < 0 else 100 * float(value)


def _by_class(precision: np.ndarray) -> tuple[float, ...]:
    each = (precision[:, :, place] for place in range(precision.shape[2]))
    return tuple(100 * float(own[own > -1].mean()) if (own > -1).any() else float("nan") for own in each)


def _truth(images: DetectionImages, kind: Kind) -> Any:
    rows = [
        _row(thing, picture, place, kind)
        for place, picture in enumerate(images.pictures, 1)
        for thing in picture.things
    ]
    return _coco(images, rows)


def _row(thing: Thing, picture: Picture, image: int, kind: Kind) -> dict[str, Any]:
    left, top, right, bottom = thing.box
    row: dict[str, Any] = {"image_id": image, "category_id": thing.label, "iscrowd": int(thing.crowd)}
    row["bbox"] = [left, top, right - left, bottom - top]
    row["area"] = _area(thing, picture)
    if kind == "segm":
        row["segmentation"] = thing.segmentation
    return row


def _area(thing: Thing, picture: Picture) -> float:
    """Returns the area in pixels: that of the file, else of the mask, else of the box."""
    left, top, right, bottom = thing.box
    if thing.area is not None:
        return thing.area
    if thing.segmentation is not None:
        return float(mask_of(thing.segmentation, picture.height, picture.width).sum())
    return (right - left) * (bottom - top)


def _answers(images: DetectionImages, found: Sequence[Detections], kind: Kind) -> Any:
    rows = [row for place, own in enumerate(found, 1) for row in _rows(own, place, kind)]
    return _coco(images, rows)


def _rows(own: Detections, image: int, kind: Kind) -> list[dict[str, Any]]:
    rows = []
    for place, (left, top, right, bottom) in enumerate(own.boxes.tolist()):
        row: dict[str, Any] = {"image_id": image, "category_id": int(own.labels[place])}
        row["score"] = float(own.scores[place])
        row |= {"iscrowd": 0, "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
        if kind == "segm":
            assert own.masks is not None
            row |= {"segmentation": own.masks[place], "area": float(coco_masks().area(own.masks[place]))}
        rows.append(row)
    return rows


def _coco(images: DetectionImages, rows: list[dict[str, Any]]) -> Any:
    """Returns pycocotools' table of images and annotations, whose ids begin with 1: it takes 0 for no match."""
    from pycocotools.coco import COCO

    table = COCO()
    table.dataset = {
        "images": [
            {"id": place, "height": picture.height, "width": picture.width}
            for place, picture in enumerate(images.pictures, 1)
        ],
        "categories": [{"id": place, "name": name} for place, name in enumerate(images.classes, 1)],
        "annotations": [row | {"id": place} for place, row in enumerate(rows, 1)],
    }
    table.createIndex()
    return table

"""Pictures of images with boxes, masks and classes."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.annotated.masks import coco_masks
from unlabeled.downstream.detection.average_precision import Detections
from unlabeled.pages.draw import font
from unlabeled.pages.palette import PALETTE

SIDE = 256  # pixels of a drawn image
SURE = 0.5  # least score of a detection that is drawn; torchvision's and detectron2's demonstrations have it
SHADE = 0.45  # of a mask's colour over the image


def drawn_truth(images: DetectionImages, row: int) -> Tensor:
    """Returns an image of the data with its objects that are no crowd, float [3, SIDE, SIDE]."""
    target = images.target(row, images.has_masks)
    masks = [each.numpy() for each in target["masks"]] if "masks" in target else None
    names = [images.classes[label - 1] for label in target["labels"].tolist()]
    return _drawn(images.image(row), target["boxes"].tolist(), target["labels"].tolist(), names, masks)


def drawn_detections(images: DetectionImages, row: int, found: Detections) -> Tensor:
    """Returns an image with what was found in it with a score of at least ``SURE``, likewise."""
    sure = [place for place, score in enumerate(found.scores) if score >= SURE]
    masks = None if found.masks is None else [coco_masks().decode(found.masks[place]) for place in sure]
    labels = [int(found.labels[place]) for place in sure]
    names = [f"{images.classes[found.labels[place] - 1]} {found.scores[place]:.2f}" for place in sure]
    return _drawn(images.image(row), [found.boxes[place].tolist() for place in sure], labels, names, masks)


def _drawn(
    image: Tensor,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    names: Sequence[str],
    masks: Sequence[np.ndarray] | None,
) -> Tensor:
    pixels = image.permute(1, 2, 0).float().numpy()
    for mask, label in zip(masks or [], labels, strict=False):
        pixels[mask > 0] = (1 - SHADE) * pixels[mask > 0] + SHADE * np.array(_colour(label))
    whole = Image.fromarray(pixels.round().astype(np.uint8))
    factor = SIDE / max(whole.size)
    whole = whole.resize((max(1, round(whole.width * factor)), max(1, round(whole.height * factor))))
    page = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    page.paste(whole)
    pen = ImageDraw.Draw(page)
    for box, label, name in zip(boxes, labels, names, strict=True):
        corners = [side * factor for side in box]
        pen.rectangle(corners, outline=_colour(label), width=2)
        pen.text(
            (corners[0] + 3, corners[1] + 1), name, fill=(255, 255, 255), font=font(11), stroke_width=1, stroke_fill=0
        )
    return torch.from_numpy(np.asarray(page).transpose(2, 0, 1).copy()).float() / 255


def _colour(label: int) -> tuple[int, int, int]:
    text = PALETTE[(label - 1) % len(PALETTE)]
    red, green, blue = (int(text[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue

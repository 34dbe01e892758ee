"""Average precision: by hand, equal to pycocotools' own files and loader, with crowds and empty images."""

import json
import math
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.downstream.detection.test_coco import HIGH, WIDE, runs, write
from tests.downstream.shapes import run_lengths, write_coco
from unlabeled.downstream.detection.annotated.coco import read_coco
from unlabeled.downstream.detection.annotated.images import DetectionImages, Picture, Thing
from unlabeled.downstream.detection.average_precision import Kind, average_precision, detections


def split(*pictures: list[Thing], classes: int = 1) -> DetectionImages:
    names = [str(number) for number in range(classes)]
    return DetectionImages(
        "here", [Picture(Path(), 100, 100, place, things) for place, things in enumerate(pictures)], names, ""
    )


def thing(*box: float, label: int = 1, crowd: bool = False) -> Thing:
    left, top, right, bottom = box
    return Thing((left, top, right, bottom), label, crowd, None, None)


def found(*rows: tuple[list[float], float], label: int = 1) -> Any:
    boxes = torch.tensor([box for box, _ in rows]).view(-1, 4)
    scores = torch.tensor([score for _, score in rows])
    return detections({"boxes": boxes, "scores": scores, "labels": torch.full((len(rows),), label)})


def test_average_precision_is_the_one_counted_by_hand() -> None:
    """Two objects. The surest box is right, the next is wrong, the third has IoU 0.64 with the second object.

    At IoU 0.5, 0.55 and 0.6 precision is 1 up to recall 1/2 and 2/3 up to 1: of the 101 points 51 have 1 and 50 have
    2/3. At the seven others only the first box is right: 51 points of 101.
    """
    images = split([thing(0, 0, 50, 50), thing(60, 60, 70, 70)])
    answers = found(([0, 0, 50, 50], 0.9), ([0, 60, 10, 70], 0.8), ([60, 60, 68, 68], 0.7))
    measured = average_precision(images, [answers], "bbox")
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert measured.ap50 == pytest.approx(100 * loose)
    assert measured.ap75 == pytest.approx(100 * strict)
    assert measured.ap == pytest.approx(100 * (3 * loose + 7 * strict) / 10)
    assert measured.small == pytest.approx(15)  # the second box is wrong, the third right, at 3 of 10 thresholds
    assert measured.medium == pytest.approx(100)
    assert math.isnan(measured.large)
    assert [*measured.classes] == [pytest.approx(measured.ap)]
    assert measured.cells[-1] == "–"


def test_what_lies_in_a_crowd_is_not_wrong_and_an_image_without_objects_counts_what_is_found_in_it() -> None:
    crowd = split([thing(0, 0, 20, 20), thing(50, 50, 100, 100, crowd=True)])
    inside = found(([60, 60, 70, 70], 0.9), ([0, 0, 20, 20], 0.8))
    assert average_precision(crowd, [inside], "bbox").ap == pytest.approx(100)
    empty = split([thing(0, 0, 20, 20)], [])
    quiet, loud = found(), found(([0, 0, 20, 20], 0.9))
    right = found(([0, 0, 20, 20], 0.8))
    assert average_precision(empty, [right, quiet], "bbox").ap == pytest.approx(100)
    assert average_precision(empty, [right, loud], "bbox").ap == pytest.approx(50)
    assert average_precision(empty, [quiet, quiet], "bbox").ap == 0
    assert math.isnan(average_precision(split([], []), [loud, quiet], "bbox").ap)


def test_a_class_without_objects_is_not_in_the_mean() -> None:
    images = split([thing(0, 0, 20, 20, label=2)], classes=3)
    measured = average_precision(images, [found(([0, 0, 20, 20], 0.9), label=2)], "bbox")
    assert measured.ap == pytest.approx(100)
    assert [math.isnan(each) for each in measured.classes] == [True, False, True]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_boxes_and_masks_are_judged_as_pycocotools_does_from_the_files(kind: Kind, tmp_path: Path) -> None:
    folder = write_coco(tmp_path, 1, 8, size=64)
    content = json.loads((folder / "val.json").read_text())
    whole = np.zeros((64, 64), bool)
    whole[:, 40:] = True
    crowd = {"id": 999, "image_id": 3, "category_id": 20, "bbox": [40, 0, 24, 64], "iscrowd": 1, "area": 24 * 64}
    content["annotations"].append(crowd | {"segmentation": runs(run_lengths(whole), (64, 64))})
    content["images"].append({"id": 99, "file_name": "00001.png", "height": 64, "width": 64})
    (folder / "val.json").write_text(json.dumps(content))
    _, val = read_coco(folder, "x")
    draw = torch.Generator().manual_seed(0)
    answers = []
    for place in range(len(val)):
        target = val.target(place, masks=True)
        again = [*range(len(target["boxes"]))] * 2
        shift = torch.randint(-4, 5, (len(again), 2), generator=draw).repeat(1, 2)
        boxes = target["boxes"][again] + shift
        masks = [target["masks"][row].roll(shift[at, :2].flip(0).tolist(), (0, 1)) for at, row in enumerate(again)]
        answers.append(
            {"boxes": boxes, "labels": target["labels"][again], "scores": torch.rand(len(again), generator=draw)}
            | {"masks": torch.stack(masks)[:, None].float() if masks else torch.zeros(0, 1, 64, 64)}
        )
    measured = average_precision(val, [detections(each) for each in answers], kind)
    assert 5 < measured.ap < measured.ap50 < 100
    stats = official(folder / "val.json", [10 * (place + 1) for place in range(3)], answers, kind)
    assert [measured.ap, measured.ap50, measured.ap75] == [pytest.approx(100 * each) for each in stats[:3]]
    by_size = [-1 if math.isnan(each) else each / 100 for each in (measured.small, measured.medium, measured.large)]
    assert by_size == [pytest.approx(each) for each in stats[3:6]]


def official(file: Path, ids: list[int], answers: list[dict[str, torch.Tensor]], kind: Kind) -> list[float]:
    """The numbers that pycocotools makes of the file and of a list of results, as its own demo does."""
    results = []
    with redirect_stdout(StringIO()):
        truth = COCO(str(file))
        for image, answer in zip(truth.getImgIds(), answers, strict=True):
            for row in range(len(answer["boxes"])):
                left, top, right, bottom = answer["boxes"][row].tolist()
                each = {"image_id": image, "category_id": ids[int(answer["labels"][row]) - 1]}
                each["score"] = float(answer["scores"][row])
                mask = np.asfortranarray(answer["masks"][row, 0].numpy().astype(np.uint8))
                own = {"bbox": [left, top, right - left, bottom - top]}
                results.append(each | (own if kind == "bbox" else {"segmentation": tools.encode(mask)}))
        judged = COCOeval(truth, truth.loadRes(results), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return [float(each) for each in judged.stats]


def test_an_area_that_the_file_does_not_say_is_that_of_the_mask(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        row = content["annotations"][0]
        del row["area"]
        row["bbox"] = [0, 0, WIDE, HIGH]  # 1,200 pixels: not small, as its mask of 100 is

    images = read_coco(write(tmp_path, change), "x")[0]
    answer = detections(
        {"boxes": torch.tensor([[0.0, 0, WIDE, HIGH]]), "labels": torch.tensor([2]), "scores": torch.ones(1)}
    )
    measured = average_precision(images, [answer, found()], "bbox")
    assert measured.small == pytest.approx(100)
    assert math.isnan(measured.medium)

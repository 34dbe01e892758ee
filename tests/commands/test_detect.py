"""``unlabeled detect`` on a small run and on small shapes: the page, going on, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unlabeled
from tests.commands.test_from_python import KEYS
from tests.downstream.shapes import write_coco

FEW: dict[str, Any] = {
    "detection": "small",
    "detection.neck": "c4",  # the smallest heads
    "detection.width": 8,
    "detection.steps": 2,
    "detection.batch_size": 2,
    "detection.warmup_steps": 1,
    "detection.milestones": [2],
    "detection.shorter": [32],
    "detection.test_size": 32,
    "num_workers": 0,
    "accelerator": "cpu",
    "shown": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unlabeled.train(out=tmp_path_factory.mktemp("detect") / "run", **KEYS).folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("shapes"), 3, 2, size=32)


def test_a_detector_stands_beside_one_from_random_weights_and_the_same_command_goes_on(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    found = unlabeled.detect(run, shapes, out=tmp_path / "page", **FEW)
    assert [*found.found] == ["run", "random init"]
    assert found.classes == ["disc", "square", "triangle"]
    assert [[*own.precision] for own in found.found.values()] == [["bbox", "segm"]] * 2
    assert [step for step, _ in found.found["run"].losses] == [1, 2]
    assert found.found["run"].losses != found.found["random init"].losses
    page = tmp_path / "page"
    values = json.loads((page / "detect.json").read_text())
    assert values["found"]["run"]["bbox"]["ap50"] == found.found["run"].precision["bbox"].ap50
    assert "random init" in (page / "detect.html").read_text()
    assert "a score of at least 0.5" in (page / "detect.html").read_text()
    assert (page / "detected.png").stat().st_size > 2000
    states = sorted((page / "detectors").rglob("last.ckpt"))
    assert [path.parent.name for path in states] == ["0_run", "1_random_init"]
    before = [path.stat().st_mtime_ns for path in states]
    assert torch.load(states[0], weights_only=True)["facts"]["masks"] is True
    again = unlabeled.detect(run, shapes, out=page, **FEW)
    assert again.rows == found.rows
    assert [path.stat().st_mtime_ns for path in states] == before  # nothing was trained again
    with pytest.raises(unlabeled.UserError, match=r"a detector with another detection\.lr, seed; give"):
        unlabeled.detect(run, shapes, out=page, **FEW | {"seed": 1, "detection.lr": 0.1})


def test_what_no_detector_can_be_made_of_is_one_line(run: Path, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(unlabeled.UserError, match=r"detection\.neck=vitdet"):
        unlabeled.detect(run, shapes, out=tmp_path, **FEW | {"detection.neck": "vitdet"})
    boxes = write_coco(tmp_path / "boxes", 2, 1, size=32, masks=False)
    with pytest.raises(unlabeled.UserError, match=r"detection\.masks=true: .*train\.json has objects without a mask"):
        unlabeled.detect(run, boxes, out=tmp_path, **FEW | {"detection.masks": True})
    with pytest.raises(unlabeled.UserError, match=r"data=.*nowhere: no such folder"):
        unlabeled.detect(run, tmp_path / "nowhere", out=tmp_path)
    with pytest.raises(unlabeled.UserError, match=r"detection\.warmup_steps=2: must be less than detection\.steps=2"):
        unlabeled.detect(run, shapes, out=tmp_path, **FEW | {"detection.warmup_steps": 2})


def test_a_class_that_only_validation_images_have_is_told_and_ids_may_be_whole_decimals(
    run: Path, tmp_path: Path
) -> None:
    folder = write_coco(tmp_path / "shapes", 3, 2, size=32)
    train = json.loads((folder / "train.json").read_text())
    train["annotations"] = [each | {"image_id": float(each["image_id"])} for each in train["annotations"]]
    lost = json.loads((folder / "val.json").read_text())["annotations"][0]["category_id"]
    train["annotations"] = [each for each in train["annotations"] if each["category_id"] != lost]
    (folder / "train.json").write_text(json.dumps(train))
    found = unlabeled.detect(run, folder, out=tmp_path / "page", **FEW | {"random": False})
    name = found.classes[lost // 10 - 1]
    assert found.unlearned == [name]
    told = f"no training image has an object of: {name}; val"
    assert all(told in (tmp_path / "page" / file).read_text() for file in ("detect.html", "detect.md"))
    assert "3 classes" in found.setting

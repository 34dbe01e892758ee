"""Data sets of torchvision by their names: labels, splits and names of classes, from tiny archives in its layout."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from unlabeled.commands.checks.places import check_places
from unlabeled.data.sources.published_sets import SETS
from unlabeled.data.sources.vision_sets import divided, labels_of, torchvision_set
from unlabeled.errors import UserError


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 0, 0)).save(path)


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """DTD: three classes, one image of each in every published split."""
    base = tmp_path / "dtd" / "dtd"
    for place, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{place}.jpg" for kind in ("banded", "dotted", "woven")]
        for shade, name in enumerate(names):
            picture(base / "images" / name, 60 * shade + place)
        (base / "labels").mkdir(exist_ok=True)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_every_set_is_a_class_of_torchvision_that_takes_these_splits() -> None:
    for name, known in SETS.items():
        parameters = inspect.signature(getattr(datasets, known.kind).__init__).parameters
        for arguments in (known.train, known.test, known.validation):
            assert set(arguments or {}) <= set(parameters), name


def test_published_splits_are_read_with_their_classes_and_file_names(textures: Path) -> None:
    splits = torchvision_set("dtd", str(textures), image_size=8)
    assert splits.test is not None
    assert splits.train.classes == ["banded", "dotted", "woven"]
    assert {name: each.labels.tolist() for name, each in splits.every().items()} == {
        **{"train": [0, 1, 2], "test": [0, 1, 2], "val": [0, 1, 2]}
    }
    assert splits.train.name(1).endswith("dtd/dtd/images/dotted/dotted_0.jpg")
    assert splits.test.decode(2).shape == (3, 8, 9)
    assert "dtd from" in splits.description
    assert "3 train and 3 test images, 3 classes" in splits.description


class Kept:
    """A data set that keeps its labels as torchvision's classes do, one way or another."""

    def __init__(self, own: list[int], **kept: Any) -> None:
        self._own = own
        self.read = 0
        vars(self).update(kept)

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, row: int) -> tuple[None, int]:
        self.read += 1
        return None, self._own[row]


@pytest.mark.parametrize(
    "kept",
    [
        {"targets": [2, 0, 1]},
        {"targets": torch.tensor([2, 0, 1])},
        {"labels": np.array([2, 0, 1])},
        {"_labels": [2, 0, 1]},
        {"y": [2, 0, 1]},
        {"_samples": [("a", 2), ("b", 0), ("c", 1)]},
        {"index": [(2, "a"), (0, "b"), (1, "c")]},
    ],
)
def test_labels_are_read_without_an_image_but_the_first_and_the_last(kept: dict[str, Any]) -> None:
    dataset = Kept([2, 0, 1], **kept)
    assert labels_of(dataset).tolist() == [2, 0, 1]
    assert dataset.read == 2


@pytest.mark.parametrize("kept", [{}, {"targets": [0, 0, 1]}, {"y": [2, 0]}, {"labels": np.zeros((3, 8))}])
def test_labels_that_are_kept_otherwise_are_read_one_by_one(kept: dict[str, Any]) -> None:
    assert labels_of(Kept([2, 0, 1], **kept)).tolist() == [2, 0, 1]


def test_a_set_without_splits_is_divided_by_class_and_always_alike(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "caltech101/101_ObjectCategories/ant" / f"image_{number + 1:04}.jpg", number)
    for number in range(40):
        picture(tmp_path / "caltech101/101_ObjectCategories/bass" / f"image_{number + 1:04}.jpg", number)
    for folder in ("Annotations", "101_ObjectCategories/BACKGROUND_Google"):
        (tmp_path / "caltech101" / folder).mkdir()
    splits, again = (torchvision_set("caltech101", str(tmp_path)) for _ in range(2))
    assert splits.test is not None
    assert again.test is not None
    assert splits.train.labels.bincount().tolist() == [5, 30]  # one of six is left to test on
    assert splits.test.labels.bincount().tolist() == [1, 10]
    names = [splits.test.name(place) for place in range(11)]
    assert names == [again.test.name(place) for place in range(11)]
    assert not {*names} & {splits.train.name(place) for place in range(35)}
    first, second = divided(splits.train, None)  # type: ignore[arg-type]
    assert first.labels.bincount().tolist() == [4, 24]
    assert second.labels.bincount().tolist() == [1, 6]


def test_a_set_that_is_not_there_or_unknown_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dtd is not, or not whole, in data.root=.*data.download=true"):
        torchvision_set("dtd", str(tmp_path))
    with pytest.raises(UserError, match=r"data.name=flowers: .*did you mean flowers102\?"):
        torchvision_set("flowers", str(tmp_path))
    with pytest.raises(UserError, match=r"torchvision cannot download fer2013; put it into data.root="):
        torchvision_set("fer2013", str(tmp_path), download=True)
    unknown = {"_target_": "unlabeled.data.sources.vision_sets.torchvision_set", "name": "flowers", "root": "nowhere"}
    with pytest.raises(UserError, match=r"data.name=flowers: "):  # and not its folder, where no such set can be
        check_places("pack", {"out": str(tmp_path / "new"), "check": False, "data": unknown})

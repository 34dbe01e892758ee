"""Images with their label maps: folders of one's own, ADE20K and Pascal VOC.

A label map is a PNG of one channel (or with a palette: the indices count, not the colours) whose pixels are class
numbers. Two numbers can mean "no class": ``ignore``, and 0 where the data set leaves its first number for that.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlabeled.core.phrases import one_line, shorten_list
from unlabeled.core.reading import read_text, require_regular
from unlabeled.data.decode import to_rgb
from unlabeled.data.lists.pictures import open_picture
from unlabeled.errors import UserError

IGNORED = -1  # of a pixel without a class, in the tensors here
ANY_SIZE = 2**20  # larger than every image, so that none is reduced
MOST_CLASSES = 4096  # ADE20K's full list has 3,688; a matrix of all pairs of classes must fit into memory
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class LabelledImages:
    """One split: images and their label maps, in the order of their names."""

    images: Sequence[Path]
    maps: Sequence[Path]
    ignore: int  # number of pixels without a class
    zero_is_no_class: bool  # whether 0 means that too, and class numbers in the files begin with 1

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        """Returns uint8 [3, h, w]. Raises UserError naming the file."""
        return to_rgb(_opened(self.images[index]), ANY_SIZE, square=False)

    def labels(self, index: int) -> Tensor:
        """Returns int64 [h, w], class numbers from 0 and IGNORED. Raises UserError naming the file."""
        path = self.maps[index]
        picture = _opened(path)
        if picture.mode not in ("L", "P", "I;16", "I", "1"):
            raise UserError(
                f"{path}: is a picture of mode {picture.mode}; a label map has one number for each pixel: save it as a"
                " PNG of mode L"
            )
        numbers = torch.from_numpy(np.array(picture, dtype=np.int64))
        no_class = numbers == self.ignore
        if self.zero_is_no_class:
            no_class |= numbers == 0
            numbers = numbers - 1
        return numbers.masked_fill(no_class, IGNORED)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns image and labels. Raises UserError where their sizes differ."""
        image, labels = self.image(index), self.labels(index)
        if image.shape[1:] != labels.shape:
            raise UserError(
                f"{self.maps[index]}: has {labels.shape[1]} × {labels.shape[0]} pixels, its image "
                f"{image.shape[2]} × {image.shape[1]}: give a label map of the image's size"
            )
        return image, labels


def _opened(path: Path) -> Image.Image:
    try:
        require_regular(path)
        with open_picture(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # on damaged data Pillow's plugins raise nearly anything
        raise UserError(f"{path}: cannot be decoded: {one_line(error)}") from error


def read_splits(
    path: Path, ignore: int, zero_is_no_class: bool | None
) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """Returns train, test and the names of the classes (none where no file names them).

    Layouts: ``train/images`` and ``train/masks`` with ``test/`` or ``val/`` beside; ADE20K (``images/training``,
    ``annotations/training``, …; its 0 is no class); Pascal VOC (``JPEGImages``, ``SegmentationClass``,
    ``ImageSets/Segmentation/train.txt``). Names stand in ``classes.txt``, one a line.

    Raises UserError where none of them is there, a split is empty, or an image has no label map.
    """
    if not path.is_dir():
        raise UserError(f"data={path}: no such folder")
    for layout in (_own, _ade20k, _voc):
        found = layout(path)
        if found is not None:
            break
    else:
        raise UserError(f"data={path}: {LAYOUTS}")
    zero = layout is _ade20k if zero_is_no_class is None else zero_is_no_class
    train, test = (LabelledImages(*_paired(*each), ignore, zero) for each in found)
    names = path / "classes.txt"
    return train, test, read_text(names, str(names)).rstrip().splitlines() if names.is_file() else []


LAYOUTS = (
    "holds no images with label maps that are known here; give a folder with train/images, train/masks, test/images "
    "and test/masks, or ADE20K's or Pascal VOC's"
)
Split = tuple[Path, Path, list[str] | None]  # folder of images, of label maps, names that are taken (None: all)


TESTS = ("test", "val", "validation")


def _own(path: Path) -> tuple[Split, Split] | None:
    test = next((path / name for name in TESTS if (path / name / "images").is_dir()), None)
    trains = (path / "train" / "images").is_dir()
    if test is None and not trains:
        return None
    if test is None:
        raise UserError(f"data={path}: there are images to train on and none to test: put some into test/images")
    if not trains:
        raise UserError(
            f"data={path}: there are images to test, in {test.name}/images, and none to train on: put some into"
            " train/images"
        )
    train: Split = (path / "train" / "images", path / "train" / "masks", None)
    return train, (test / "images", test / "masks", None)


def _ade20k(path: Path) -> tuple[Split, Split] | None:
    if not any((path / "annotations" / name).is_dir() for name in ("training", "validation")):
        return None
    train, test = ((path / "images" / name, path / "annotations" / name, None) for name in ("training", "validation"))
    return train, test


def _voc(path: Path) -> tuple[Split, Split] | None:
    lists = path / "ImageSets" / "Segmentation"
    if not lists.is_dir():
        return None
    train, test = (
        (path / "JPEGImages", path / "SegmentationClass", read_text(file, str(file)).split())
        for file in (lists / "train.txt", lists / "val.txt")
    )
    return train, test


def _paired(images: Path, maps: Path, names: list[str] | None) -> tuple[list[Path], list[Path]]:
    """Returns the files of both, by the names that they share."""
    if not images.is_dir() or not maps.is_dir():
        raise UserError(f"{images if not images.is_dir() else maps}: no such folder")
    own = _by_stem(images, PICTURES)
    labelled = _by_stem(maps, (".png",))
    wanted = sorted(own) if names is None else names
    missing = [name for name in wanted if name not in own or name not in labelled]
    if missing:
        raise UserError(
            f"{maps}: {len(missing)} of {len(wanted)} images have no image or no label map: {shorten_list(missing, 3)};"
            " add a .png of the same name, or take the image away"
        )
    if not wanted:
        raise UserError(f"{images}: there is no image in it")
    return [own[name] for name in wanted], [labelled[name] for name in wanted]


def _by_stem(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Returns the files with one of the endings. Raises UserError for two that differ in the ending alone."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in endings and (other := found.setdefault(file.stem, file)) is not file:
            raise UserError(f"{folder}: holds {other.name} and {file.name}, which have one label map: take one away")
    return found


def count_classes(split: LabelledImages) -> int:
    """Returns one more than the greatest class number in the label maps.

    Raises UserError where none has a class, or a number is no class's.
    """
    most = -1
    for index, path in enumerate(split.maps):
        greatest = int(split.labels(index).max())
        if greatest >= MOST_CLASSES:
            raise UserError(
                f"{path}: has the class number {greatest}, and {MOST_CLASSES:,} classes are the most: number the"
                f" classes from 0 on; pixels of ignore={split.ignore} have no class"
            )
        most = max(most, greatest)
    if most < 0:
        raise UserError(f"{os.path.dirname(split.maps[0])}: no pixel has a class")
    return most + 1

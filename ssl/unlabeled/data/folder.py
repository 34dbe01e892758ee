"""Image files in folders: one sub-folder per class, or just images."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data.decode import check_image_size, decode_bytes, in_words
from unlabeled.data.source import Splits
from unlabeled.errors import UserError

_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow opens them, but cannot decode them by itself
_TESTS = ("test", "val")  # in this order, where data.test is not given


class FolderSource:
    """A list of image files with their labels; files are opened when they are decoded and not before."""

    def __init__(
        self, root: Path, files: list[str], labels: Tensor, classes: list[str], image_size: int, square: bool
    ) -> None:
        self._root = root
        # One array, not a million str objects: their reference counts would copy the list into every forked worker.
        self._files = np.array([os.fsencode(file) for file in files])
        self.labels = labels
        self.classes = classes
        self.image_size, self.square = image_size, square

    def __len__(self) -> int:
        return len(self._files)

    def decode(self, index: int) -> Tensor:
        return decode_bytes(self.encoded(index), self.name(index), self.image_size, self.square)

    def encoded(self, index: int) -> Path:
        return Path(self.name(index))

    def name(self, index: int) -> str:
        return str(self._root / os.fsdecode(self._files[index]))


def folder(
    path: str,
    train: str | None = None,
    test: str | None = None,
    image_size: int = 256,
    labels: str = "auto",
    square: bool = False,
) -> Splits:
    """Images under ``path``: jpg, png, tiff, webp and whatever else Pillow decodes, hidden files and folders left out.

    Splits. ``train`` and ``test`` are folders under ``path``. Without ``train`` it is ``path/train`` if that exists and
    nothing but test and val stands beside it, else ``path`` itself. Without ``test`` it is ``path/test``, else
    ``path/val``, else there is none; ``test="none"`` says that there is none.

    Labels. ``folders``: each sub-folder that holds images, at any depth, is a class; an image beside them is an error.
    ``none``: images at any depth, no labels and so no test split. ``auto``: ``folders`` if all images lie in
    sub-folders, ``none`` if all lie directly in the folder, and an error if both occur.

    Images. ``square`` or whole, see :func:`unlabeled.data.decode.rgb`, with ``image_size`` in pixels.

    Files and classes are in sorted order. Raises UserError where the layout does not say what is meant.
    """
    check_image_size(image_size)
    if labels not in ("auto", "folders", "none"):
        raise UserError(f"data.labels={labels} is not known: give auto, folders or none")
    base = Path(path).expanduser()
    _require_folder(base, f"data.path={path}")
    train_root = _train_root(base, train)
    test_root = _test_root(base, train_root, test)
    source, kept = _source(train_root, labels, image_size, square), in_words(image_size, square)
    if not source.classes and test not in (None, "none"):
        raise UserError(f"data.test={test} cannot be used: {train_root} has no labels; leave data.test out")
    if not source.classes or test_root is None:
        counts = f"{len(source):,} images from {train_root}, {_count(source.classes)}, no test split"
        return Splits(source, None, f"{counts}, {kept}")
    held_out = _source(test_root, "folders", image_size, square)
    _require_equal_classes(train_root, source.classes, test_root, held_out.classes)
    counts = f"{len(source):,} train ({train_root.name}) and {len(held_out):,} test ({test_root.name}) images"
    return Splits(source, held_out, f"{counts} from {base}, {_count(source.classes)}, {kept}")


def _train_root(base: Path, train: str | None) -> Path:
    if train is not None:
        _require_folder(base / train, f"data.train={train}")
        return base / train
    splits = [name for name in ("train", *_TESTS) if (base / name).is_dir()]
    if not splits:
        return base
    if "train" not in splits:
        raise UserError(
            f"data.path={base} holds {splits[0]}/ but no train/: give data.train=<folder to train on>, or"
            f" data.train=. if {splits[0]} is a class"
        )
    beside = next((file for file in _images(base, skip=splits)), None)
    if beside is not None:
        raise UserError(
            f"data.path={base} holds train/ and also {beside}: give data.train=train to train on that folder only, or"
            " data.train=. if train is a class"
        )
    return base / "train"


def _test_root(base: Path, train_root: Path, test: str | None) -> Path | None:
    if test == "none":
        return None
    if test is None:
        found = (base / name for name in _TESTS if (base / name).is_dir())
        return None if train_root.resolve() == base.resolve() else next(found, None)
    _require_folder(base / test, f"data.test={test}")
    if (base / test).resolve().is_relative_to(train_root.resolve()):
        raise UserError(f"data.test={test} lies in {train_root}, which is trained on: give data.train=<another folder>")
    return base / test


def _source(root: Path, labels: str, image_size: int, square: bool) -> FolderSource:
    files = list(_images(root))
    if not files:
        raise UserError(f"{root} holds no image that Pillow can read: change data.path=... (or data.train, data.test)")
    loose = next((file for file in files if os.sep not in file), None)
    nested = next((file for file in files if os.sep in file), None)
    if loose and (labels == "folders" or (labels == "auto" and nested)):
        other = f"others in sub-folders ({nested})" if nested else "none in sub-folders"
        raise UserError(
            f"{root} is no set of class folders: {loose} lies directly in it, {other};"
            " give data.labels=none to read all without labels, or move the file"
        )
    if loose or labels == "none":
        return FolderSource(root, files, torch.full((len(files),), -1), [], image_size, square)
    owners = [file.split(os.sep, 1)[0] for file in files]
    classes = sorted(set(owners))
    number = {name: label for label, name in enumerate(classes)}
    numbers = torch.tensor([number[owner] for owner in owners])
    return FolderSource(root, files, numbers, classes, image_size, square)


def _images(root: Path, skip: list[str] | None = None) -> Iterator[str]:
    """Paths of all images under a folder, relative to it, in a fixed order, without the top folders ``skip``."""
    extensions = _extensions()
    for directory, folders, names in os.walk(root, followlinks=True):
        inside = os.path.relpath(directory, root)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (inside == "." and f in (skip or [])))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                yield os.path.normpath(os.path.join(inside, name))


def _extensions() -> set[str]:
    readable = Image.registered_extensions().items()
    return {extension for extension, kind in readable if kind in Image.OPEN and kind not in _NOT_PICTURES}


def _require_folder(folder: Path, given: str) -> None:
    if folder.is_dir():
        return
    problem = "is a file" if folder.exists() else "does not exist"
    raise UserError(f"{given}: {folder.absolute()} {problem}; give a folder of images")


def _require_equal_classes(train_root: Path, train: list[str], test_root: Path, test: list[str]) -> None:
    odd = sorted(set(train) ^ set(test))
    if odd:
        where, other = (train_root, test_root) if odd[0] in train else (test_root, train_root)
        raise UserError(
            f"{where / odd[0]} is a class that {other} lacks ({len(odd)} such): train and test need the same class"
            " folders; give another data.test=..., or data.test=none"
        )


def _count(classes: list[str]) -> str:
    return f"{len(classes)} classes" if classes else "no labels"

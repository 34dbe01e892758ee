"""Image files in folders: one sub-folder per class, or just images."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlabeled.core.ranges import Channels, Count, FilePath, Pixels
from unlabeled.core.shown import shown
from unlabeled.data.decode import check_image_size, decode_bytes, describe_size
from unlabeled.data.decoding import MOST_PIXELS, RGB, Bits, Decoding
from unlabeled.data.source import Splits
from unlabeled.data.sources.index import Index, IndexNote, load_or_build
from unlabeled.errors import UserError

_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow opens them, but cannot decode them by itself
_SETTLED = 2 * 10**9  # ns: a folder changed so shortly before its scan may change again within one tick of its clock
_TESTS = ("test", "val")  # in this order, where data.test is not given


class FolderSource:
    """A list of image files with their labels; files are opened when they are decoded and not before."""

    decoding = RGB

    def __init__(
        self, root: Path, listed: Index, labels: Tensor, classes: list[str], image_size: int, square: bool
    ) -> None:
        self._root, self._listed = root, listed
        self.labels = labels
        self.classes = classes
        self.image_size, self.square = image_size, square

    def __len__(self) -> int:
        return len(self._listed)

    def decode(self, index: int) -> Tensor:
        return decode_bytes(self.encoded(index), self.name(index), self.image_size, self.square, self.decoding)

    def encoded(self, index: int) -> Path:
        return self._root / os.fsdecode(self._listed.text("path", index))

    def files(self) -> list[str]:
        return [str(self.encoded(index)) for index in range(len(self))]

    def within(self) -> str:
        return ""

    def name(self, index: int) -> str:
        return shown(self.encoded(index))


def folder(
    path: FilePath,
    train: FilePath | None = None,
    test: FilePath | None = None,
    image_size: Pixels = 256,
    labels: Literal["auto", "folders", "none"] = "auto",
    square: bool = False,
    index: FilePath | None = None,
    channels: Channels = 3,
    bits: Bits = 8,
    max_pixels: Count = MOST_PIXELS,
) -> Splits:
    """Images under ``path``: jpg, png, tiff, webp and whatever else Pillow decodes, hidden files and folders left out.

    Splits. ``train`` and ``test`` are folders under ``path``. Without ``train`` it is ``path/train`` if that exists and
    nothing but test and val stands beside it, else ``path`` itself. Without ``test`` it is ``path/test``, else
    ``path/val``, else there is none; ``test="none"`` says that there is none.

    Labels. ``folders``: each sub-folder that holds images, at any depth, is a class; an image beside them is an error.
    ``none``: images at any depth, no labels and so no test split. ``auto``: ``folders`` if all images lie in
    sub-folders, ``none`` if all lie directly in the folder, and an error if both occur.

    Images. ``square`` or whole, see :func:`unlabeled.data.decode.to_rgb`, with ``image_size`` in pixels; ``channels``,
    ``bits`` and ``max_pixels`` see :class:`unlabeled.data.decoding.Decoding`.

    Files and classes are in sorted order. A long list of them is kept in the folder ``index``, see
    :func:`unlabeled.data.sources.index.load_or_build`, and made again when a folder's time of change says that a file
    has come or gone.

    Raises UserError where the layout does not say what is meant.
    """
    check_image_size(image_size)
    decoding = Decoding(channels, bits, max_pixels)
    if labels not in ("auto", "folders", "none"):
        raise UserError(f"data.labels={labels} is not known: give auto, folders or none")
    base = Path(path).expanduser()
    _require_folder(base, f"data.path={path}")
    train_root = _train_root(base, train)
    test_root = _test_root(base, train_root, test)
    source, kept = _source(train_root, labels, image_size, square, index), describe_size(image_size, square)
    if not source.classes and test not in (None, "none"):
        raise UserError(f"data.test={test} cannot be used: {train_root} has no labels; leave data.test out")
    if not source.classes or test_root is None:
        counts = f"{len(source):,} images from {train_root}, {_count(source.classes)}, no test split"
        return decoding.of(Splits(source, None, f"{counts}, {kept}"))
    held_out = _source(test_root, "folders", image_size, square, index)
    _require_equal_classes(train_root, source.classes, test_root, held_out.classes)
    counts = f"{len(source):,} train ({train_root.name}) and {len(held_out):,} test ({test_root.name}) images"
    return decoding.of(Splits(source, held_out, f"{counts} from {base}, {_count(source.classes)}, {kept}"))


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


def _source(root: Path, labels: str, image_size: int, square: bool, place: str | None) -> FolderSource:
    listed = _listed(root, place)
    if not len(listed):
        raise UserError(f"{root} holds no image that Pillow can read: change data.path=... (or data.train, data.test)")
    owners = listed.numbers("owner")
    loose, nested = _first(listed, owners < 0), _first(listed, owners >= 0)
    if loose and (labels == "folders" or (labels == "auto" and nested)):
        other = f"others in sub-folders ({nested})" if nested else "none in sub-folders"
        raise UserError(
            f"{root} is no set of class folders: {loose} lies directly in it, {other};"
            " give data.labels=none to read all without labels, or move the file"
        )
    if loose or labels == "none":
        return FolderSource(root, listed, torch.full((len(listed),), -1), [], image_size, square)
    return FolderSource(
        root, listed, torch.from_numpy(owners.copy()), [*map(shown, listed.note["classes"])], image_size, square
    )


def _listed(root: Path, place: str | None) -> Index:
    """All images under a folder: columns ``path``, relative to it, and ``owner``, the number of the class folder."""
    wanted: IndexNote = {"of": str(root.resolve()), "extensions": sorted(readable_extensions())}
    return load_or_build(wanted, place, lambda note: _unchanged(root, note["folders"]), lambda: _scan(root))


def _scan(root: Path) -> tuple[dict[str, np.ndarray | list[bytes]], IndexNote]:
    settled = time.time_ns() - _SETTLED
    paths, owners, classes, folders = list[bytes](), list[int](), dict[str, int](), list[tuple[str, int]]()
    for inside, names in _walk(root):
        changed = os.stat(root / inside).st_mtime_ns
        folders.append((inside, changed if changed < settled else 0))
        owner = inside.split(os.sep, 1)[0]
        number = -1 if inside == "." else classes.setdefault(owner, len(classes)) if names else 0
        paths += [os.fsencode(os.path.normpath(os.path.join(inside, name))) for name in names]
        owners += [number] * len(names)
    return {"path": paths, "owner": np.array(owners, np.int64)}, {"classes": list(classes), "folders": folders}


def _unchanged(root: Path, folders: list[tuple[str, int]]) -> bool:
    """Whether no file has come or gone: no file is looked at."""
    try:
        return all(os.stat(root / inside).st_mtime_ns == changed for inside, changed in folders)
    except OSError:
        return False


def _first(listed: Index, chosen: np.ndarray) -> str | None:
    rows = np.flatnonzero(chosen)
    return os.fsdecode(listed.text("path", int(rows[0]))) if len(rows) else None


def _images(root: Path, skip: list[str]) -> Iterator[str]:
    """Paths of all images under a folder, relative to it, without the top folders ``skip``."""
    for inside, names in _walk(root, skip):
        yield from (os.path.normpath(os.path.join(inside, name)) for name in names)


def _walk(root: Path, skip: Iterable[str] = ()) -> Iterator[tuple[str, list[str]]]:
    """Each folder under ``root``, relative to it, with the names of its images, in a fixed order."""
    extensions = readable_extensions()
    for directory, folders, names in os.walk(root, followlinks=True):
        inside = os.path.relpath(directory, root)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (inside == "." and f in skip))
        yield inside, [name for name in sorted(names) if _is_image(name, extensions)]


def _is_image(name: str, extensions: set[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions


def readable_extensions() -> set[str]:
    """Of the files that Pillow can decode by itself, in lower case and with their dot."""
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

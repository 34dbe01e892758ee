"""Reads image files from folders, with a sub-folder per class or just images, or from a list."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unlabeled.core.escaping import escaped
from unlabeled.core.ranges import Between, Channels, Count, Decoder, FilePath, Paths, Pixels
from unlabeled.data.decode import check_image_size, decode_bytes, describe_size
from unlabeled.data.decoding import MOST_PIXELS, RGB, Bits, Decoding
from unlabeled.data.lists.index import Index
from unlabeled.data.lists.left_out import sum_counts
from unlabeled.data.lists.listing import Listing
from unlabeled.data.lists.sets import Reader, Sets, by_name, distinct_names, find_sets, short_name
from unlabeled.data.source import Splits
from unlabeled.errors import UserError


class FolderSource:
    """A source of listed image files with labels; a file is opened only when it is decoded."""

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
        return escaped(self.encoded(index))


def folder(
    path: Paths,
    train: FilePath | None = None,
    test: Paths | None = None,
    image_size: Pixels = 256,
    labels: Literal["auto", "folders", "none"] = "auto",
    square: bool = False,
    index: FilePath | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    channels: Channels = 3,
    bits: Bits = 8,
    max_pixels: Count = MOST_PIXELS,
    decode: Decoder = "auto",
    holdout: Between | None = None,
) -> Splits:
    """Reads images under ``path``: jpg, png, tiff, webp and whatever else Pillow decodes; hidden files are left out.

    ``path`` is a folder, a file that lists images (see :func:`unlabeled.data.lists.list_files.of_list`), or several of
    both, which are joined to one data set.

    Splits. ``train`` and ``test`` are folders or lists under ``path``. Without ``train`` it is ``path/train`` (or
    training, in any letter case) if that exists and only test and val folders are beside it, else ``path`` itself.
    Without ``test`` it is ``path/test``, else testing, val, valid or validation, else there is none; ``test="none"``
    sets none. Of several ``test`` each is evaluated; the report shows the first. ``holdout`` takes such a share of the
    training images as the test split instead, see :func:`unlabeled.data.lists.holdout.hold_out`.

    Labels. ``folders``: each sub-folder that holds images, at any depth, is a class; an image beside them is an error.
    ``none``: images at any depth, no labels and so no test split. ``auto``: ``folders`` if all images lie in
    sub-folders, ``none`` if all lie directly in the folder, and an error if both occur. Classes of test are matched by
    name: a test split may lack classes of train, but must not have others. Lists give their own labels.

    Images. ``square`` or whole, see :func:`unlabeled.data.decode.to_rgb`, with ``image_size`` in pixels; ``channels``,
    ``bits`` and ``max_pixels`` see :class:`unlabeled.data.decoding.Decoding`. A file counts once, whatever links lead
    to it and however many of several folders and lists give it; a link to a parent folder is not followed.
    ``Splits.left_out`` counts the files that are not used, and ``Splits.warnings`` names possible mistakes. Test images
    that are training images too are a warning, and an error if all of them are.

    Files and classes are in sorted order. A long list of them is stored in the folder ``index``, see
    :func:`unlabeled.data.lists.index.load_or_build`, and made again when a folder's time shows that a file was added or
    removed.

    Raises UserError for an ambiguous layout.
    """
    check_image_size(image_size)
    decoding = Decoding(channels, bits, max_pixels, decode)
    if labels not in ("auto", "folders", "none"):
        raise UserError(f"data.labels={labels} is not known: give auto, folders or none")
    found = find_sets(path, train, test, labels == "auto", Reader(index, path_column, label_column), holdout)
    source, kept = _source(found.train, labels, image_size, square), describe_size(image_size, square)
    if not source.classes:
        _check_unlabelled(found, test, holdout)
    found.warnings.extend(_of_minus_one(source, found.train))
    tests = [by_name(listed, found.train, found.warnings) for listed in found.tests] if source.classes else []
    others = [_source(listed, "folders", image_size, square, tested=True) for listed in tests]
    untested = [] if source.classes else [_source(listed, "none", image_size, square) for listed in found.tests]
    splits = Splits(
        source,
        others[0] if others else None,
        f"{_counts(source, found.train, others, tests)}, {kept}",
        left_out=sum_counts([found.train.left_out, *(listed.left_out for listed in tests)]),
        warnings=found.warnings,
        others=dict(zip(distinct_names(tests)[1:], others[1:], strict=True)),
        unjudged=dict(zip(["test", *distinct_names(found.tests)[1:]], untested, strict=False)),
    )
    return decoding.of(splits)


def _check_unlabelled(found: Sets, test: Paths | None, holdout: float | None) -> None:
    """Refuses a test split that was asked for, and warns of one that was found: without labels nothing is tested."""
    where = found.train.where
    if holdout is not None:
        raise UserError(
            f"data.holdout={holdout}: {where} has no labels, so nothing can be tested; leave data.holdout out"
        )
    if test not in (None, "none"):
        raise UserError(f"data.test={test} cannot be used: {where} has no labels; leave data.test out")
    if found.tests:
        found.warnings.append(f"{found.tests[0].where} is not tested on: {where} has no labels")


def _of_minus_one(source: FolderSource, listed: Listing) -> list[str]:
    """Warns of a list whose numbers of classes begin at −1, which elsewhere means that there is no label."""
    if listed.of_folder or source.classes[:2] != ["-1", "0"]:
        return []
    number = int((source.labels == 0).sum())
    return [f"{listed.where}: label -1 is taken for a class, of {number:,} images: leave it empty where there is none"]


def _source(listed: Listing, labels: str, image_size: int, square: bool, tested: bool = False) -> FolderSource:
    loose, nested = listed.first(listed.owners < 0), listed.first(listed.owners >= 0)
    if listed.of_folder and loose and (labels == "folders" or (labels == "auto" and nested)):
        other = f"others in sub-folders ({escaped(nested)})" if nested else "none in sub-folders"
        remedy = "data.test=none to test on no image" if tested else "data.labels=none to read all without labels"
        raise UserError(
            f"{listed.where} is no set of class folders: {escaped(loose)} lies directly in it, {other};"
            f" give {remedy}, or move the file"
        )
    if labels == "none" or not nested:
        unlabelled = torch.full((len(listed.owners),), -1)
        return FolderSource(listed.root, listed.index, unlabelled, [], image_size, square)
    owners = torch.from_numpy(listed.owners.copy())
    return FolderSource(listed.root, listed.index, owners, [*map(escaped, listed.classes)], image_size, square)


def _counts(train: FolderSource, listed: Listing, others: list[FolderSource], tests: list[Listing]) -> str:
    classes = f"{len(train.classes)} classes" if train.classes else "no labels"
    if not others:
        return f"{len(train):,} images from {listed.where}, {classes}, no test split"
    counts = [f"{len(train):,} train ({short_name(listed)})"]
    counts += [f"{len(other):,} test ({short_name(test)})" for other, test in zip(others, tests, strict=True)]
    base = os.path.dirname(listed.where.split(", ")[0]) or os.getcwd()  # data.path=classes has no folder before it
    return f"{' and '.join(counts)} images from {base}, {classes}"

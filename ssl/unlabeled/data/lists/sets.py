"""Reads ``data.path``, ``data.train`` and ``data.test``: folders and lists become train and test splits."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unlabeled.core.ranges import Paths
from unlabeled.core.reading import shown_path
from unlabeled.data.lists.holdout import hold_out_all
from unlabeled.data.lists.layout import class_warnings, require_folder, test_root, train_root, unused_splits
from unlabeled.data.lists.left_out import lines
from unlabeled.data.lists.list_files import LISTS, is_list, of_list
from unlabeled.data.lists.listing import Listing, join_listings, of_folder, of_image
from unlabeled.data.lists.pictures import looks_like_image
from unlabeled.data.lists.same_files import each_once, trained_on
from unlabeled.errors import UserError


class Reader:
    """Lists the images of a folder or of a list file.

    Args:
        place: ``data.index``.
        path_column, label_column: of list files.
    """

    def __init__(self, place: str | None, path_column: str | None, label_column: str | None) -> None:
        self.place, self.columns, self.lists = place, (path_column, label_column), 0

    def __call__(self, path: Path, given: str) -> Listing:
        """Raises UserError, with the key and value ``given``, for what is no folder, list or image."""
        if is_list(path) and os.path.isfile(path):
            self.lists += 1
            return of_list(path, given, *self.columns)
        if os.path.isfile(path) and looks_like_image(path):
            return of_image(path)
        if os.path.isfile(path):
            ends = ", ".join(LISTS)
            raise UserError(
                f"{given}: {path.absolute()} is a file, but no image that Pillow can read; give an image, a folder of "
                f"images, or a list of them ({ends})"
            )
        require_folder(path, given)
        return of_folder(path, self.place)


@dataclass
class Sets:
    """The splits of a data set; the report shows the first of ``tests``."""

    train: Listing
    tests: list[Listing]
    warnings: list[str]


def find_sets(
    path: Paths, train: str | None, test: Paths | None, guessed: bool, reader: Reader, holdout: float | None = None
) -> Sets:
    """Finds the splits that the keys name, see :func:`unlabeled.data.sources.folder.folder`.

    Raises:
        UserError: a split does not exist, holds no image, or is ambiguous.
    """
    asked: list[str | None] = [None] if test is None else [*_several(test, "data.test")]
    trains, tests, warnings = list[Listing](), dict[str | None, list[Listing]](), list[str]()
    for each in _several(path, "data.path"):
        own, places = _places(Path(each).expanduser(), f"data.path={each}", train, asked)
        trains.append(reader(own, f"data.path={each}" if train is None else f"data.train={train}"))
        for name, place in places.items():
            tests.setdefault(name, []).append(reader(place, f"data.test={name}"))
        warnings += unused_splits(Path(each).expanduser(), [own, *places.values()]) if test is None else []
    of_classes = class_warnings(_joined(trains), guessed)  # a list of held-out images does not keep its folders
    if holdout is not None:
        if tests:
            some = next(iter(tests.values()))[0].where
            raise UserError(
                f"data.holdout={holdout}: {some} is the test split already; leave data.holdout out, or give"
                " data.test=none"
            )
        trains, tests[None] = hold_out_all(trains, holdout)
    found = Sets(_joined(trains), [_joined(parts) for parts in tests.values()], warnings)
    if any(reader.columns) and not reader.lists:
        raise UserError("data.path_column, data.label_column: they are of lists, and none is read; leave them out")
    found.warnings += of_classes
    found.warnings += [line for listed in found.tests for line in trained_on(listed, found.train)]
    return found


def by_name(test: Listing, train: Listing, warnings: list[str]) -> Listing:
    """Gives the test images the class numbers of train, matched by the names of the classes.

    Raises:
        UserError: train lacks one of their classes. Classes that test lacks are named in ``warnings``.
    """
    number = {name: place for place, name in enumerate(train.classes)}
    if odd := [name for name in test.classes if name not in number]:
        raise UserError(
            f"{shown_path(os.path.join(test.where, odd[0]))} is a class that {train.where} lacks ({len(odd)} such): a "
            "test split may have the classes of train and no others; give another data.test=..., or data.test=none"
        )
    missing = [name for name in train.classes if name not in test.classes]
    if missing:
        few = ", ".join(map(shown_path, missing[:3])) + (", …" if len(missing) > 3 else "")
        warnings.append(f"{test.where} has no image of {len(missing)} of the {len(number)} classes of train ({few})")
    own = np.array([*(number[name] for name in test.classes), -1])  # the last entry maps -1 to -1
    return replace(test, owners=own[test.owners], classes=train.classes)


def short_name(listed: Listing) -> str:
    """Returns the last part of the listing's path, or of each path where it has several."""
    return "+".join(os.path.basename(os.path.abspath(part)) for part in listed.where.split(", "))


def distinct_names(tests: list[Listing]) -> list[str]:
    """Returns a distinct folder name for each test set: the last part of its path, or the whole path if equal."""
    names = [short_name(listed) for listed in tests]
    if len(set(names)) == len(names):
        return names
    return [os.path.abspath(listed.where).strip(os.sep).replace(os.sep, "_") for listed in tests]


def _several(given: Paths, key: str) -> list[str]:
    paths = given if isinstance(given, list) else [given]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{key}={given}: give a folder or a list file, or several as {key}=[A,B]")
    if len(set(paths)) < len(paths):
        raise UserError(f"{key}={given}: names one twice; give each once")
    return paths


def _places(base: Path, given: str, train: str | None, tests: list[str | None]) -> tuple[Path, dict[str | None, Path]]:
    """Returns the folder or list to train on, and those to test on, keyed by the value that names them."""
    if os.path.isdir(base):
        named = [name for name in tests if name not in (None, "none")]
        own = base / train if train is not None and is_list(train) else train_root(base, train, named)
    elif train is not None and os.path.isfile(base):
        raise UserError(f"data.train={train}: {given} is a file and all of it is trained on; leave data.train out")
    else:
        own, base = base, base.parent
    places: dict[str | None, Path] = {}
    for name in tests:
        if name is not None and is_list(name):
            places[name] = base / name
        elif os.path.isdir(own) or name not in (None, "none"):
            place = test_root(base, own, name)
            places |= {} if place is None else {name: place}
    return own, places


def _joined(parts: list[Listing]) -> Listing:
    """Joins lists. Raises UserError where there is no image, or an image is listed twice."""
    for part in parts:
        if not len(part.index):
            left = "; ".join(lines(part.left_out))
            raise UserError(
                f"{part.where} holds no image that Pillow can read{f', but {left}' if left else ''}: change "
                "data.path=... (or data.train, data.test)"
            )
    roots = [part.root.resolve() for part in parts if part.of_folder]
    for number, root in enumerate(roots):
        inner = [other for place, other in enumerate(roots) if place != number and other.is_relative_to(root)]
        if inner:
            raise UserError(f"data.path: {inner[0]} lies in {root}, whose images it would give twice; leave one out")
    return parts[0] if len(parts) == 1 else each_once(join_listings(parts))

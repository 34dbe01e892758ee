"""Finds the folders of a data set that are its splits, and warns of layouts that look like a mistake."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from unlabeled.core.reading import kind_of, shown_path
from unlabeled.data.lists.listing import Listing, first_image
from unlabeled.errors import UserError

TRAIN = ("train", "training")  # in any letter case
TEST = ("test", "testing", "val", "valid", "validation")  # in this order, where data.test is not given
_YEAR, _MONTH, _DAY, _GAP = r"(19|20)\d\d", r"(0?[1-9]|1[0-2])", r"(0?[1-9]|[12]\d|3[01])", r"[-_. ]"
_NAMED = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?|september|oct(ober)?|nov(ember)?"
    r"|dec(ember)?)"
)
_DATE = re.compile(
    rf"{_YEAR}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])?([-_T ].*)?"  # 20230105, 202301, 20230105_101500
    rf"|{_YEAR}({_GAP}({_MONTH}|{_NAMED})({_GAP}{_DAY}([T_ -].*)?)?)?"  # 2023, 2023-01, 2023-jan, 2023-01-05 walk
    rf"|{_DAY}{_GAP}({_MONTH}|{_NAMED}){_GAP}{_YEAR}([T_ -].*)?"  # 05.01.2023, 5 jan 2023
    rf"|{_NAMED}({_GAP}?{_YEAR})?",  # january, jan 2023
    re.IGNORECASE,
)
_WORD = re.compile(r"(train|test|val)(ing|id|idation)?(set|data|images|imgs)?|dev|eval|holdout")


def splits_in(base: Path) -> dict[str, list[str]]:
    """Returns the folders that are splits by their names: of ``train``, and of ``test`` in order of preference."""
    try:
        names = sorted(entry.name for entry in os.scandir(base) if entry.is_dir())
    except OSError:  # a list file, or a folder without permission to list it
        names = []
    found = {
        key: [name for name in names if name.lower() in known] for key, known in (("train", TRAIN), ("test", TEST))
    }
    found["test"].sort(key=lambda name: TEST.index(name.lower()))
    return found


def train_root(base: Path, train: str | None, tests: Sequence[str] = ()) -> Path:
    """Returns the folder to train on: ``train``, else a folder named like it, else ``base``; ``tests`` are no classes.

    Raises:
        UserError: the folder does not exist; or it is not clear whether a folder is a split or a class.
    """
    if train is not None:
        require_folder(base / train, f"data.train={train}")
        return base / train
    found = splits_in(base)
    every = [*found["train"], *found["test"]]
    if not every:
        return base
    if not found["train"]:
        raise UserError(
            f"data.path={base} holds {every[0]}/ but no train/: give data.train=<folder to train on>, or"
            f" data.train=. if {every[0]} is a class"
        )
    if len(found["train"]) > 1:
        raise UserError(f"data.path={base} holds {' and '.join(found['train'])}: give data.train=<one of them>")
    own, beside = found["train"][0], first_image(base, [*every, *map(os.path.normpath, tests)])
    if beside is not None:
        raise UserError(
            f"data.path={base} holds {own}/ and also {beside}: give data.train={own} to train on that folder only, or"
            f" data.train=. if {own} is a class"
        )
    return base / own


def test_root(base: Path, own: Path, test: str | None) -> Path | None:
    """Returns the folder to test on: ``test``, else the first named like a test split beside ``own``, the train folder.

    Raises:
        UserError: the folder does not exist, or lies in the folder to train on.
    """
    if test == "none":
        return None
    if test is None:
        beside = [] if own.resolve() == base.resolve() else splits_in(base)["test"]
        return next((base / name for name in beside if (base / name).resolve() != own.resolve()), None)
    require_folder(base / test, f"data.test={test}")
    if (base / test).resolve().is_relative_to(own.resolve()):
        raise UserError(f"data.test={test} lies in {own}, which is trained on: give data.train=<another folder>")
    return base / test


def require_folder(folder: Path, given: str) -> None:
    """Raises UserError, with the key and value ``given``, unless ``folder`` is a folder."""
    if os.path.isdir(folder):  # False for names that no file can have, where Path.is_dir raises
        return
    try:
        problem = f"is {kind_of(os.stat(folder).st_mode) or 'a file'}"
    except (OSError, ValueError):
        problem = "does not exist"
    raise UserError(f"{given}: {shown_path(folder.absolute())} {problem}; give a folder of images")


def unused_splits(base: Path, used: list[Path]) -> list[str]:
    """Returns a sentence about folders that are splits by their names but are not used."""
    found, taken = splits_in(base), {path.resolve() for path in used}
    if base.resolve() in taken:
        return []
    unused = [name for name in (*found["train"], *found["test"]) if (base / name).resolve() not in taken]
    lines = (
        [f"{base} holds {', '.join(unused)} too, not used: data.test={unused[0]} would test on it"] if unused else []
    )
    own = used[0]
    same = [name for name in found["test"] if (base / name) != own and (base / name).resolve() == own.resolve()]
    return lines + [f"{base / name} is not tested on: it is a link to {own}, which is trained on" for name in same]


def class_warnings(listed: Listing, guessed: bool) -> list[str]:
    """Returns warnings about class sub-folders that look like a mistake; ``guessed``: the user did not say so."""
    if not (listed.of_folder and guessed and listed.classes):
        return []
    found, dates = [], [name for name in listed.classes if _DATE.fullmatch(name)]
    if dates and len(dates) == len(listed.classes):
        few = ", ".join(dates[:3]) + (", …" if len(dates) > 3 else "")
        found.append(f"the classes of {listed.where} look like dates ({few}): give data.labels=none if they are none")
    within = _splits_within(listed)
    if within:
        name, splits = next(iter(within.items()))
        found.append(
            f"{listed.where}: {name} is taken for a class, and holds {' and '.join(sorted(splits))}, which look like "
            f"splits: give data.path={listed.where}{os.sep}{name} if they are"
        )
    odd = [name for name in listed.classes if name.lower() in (*TRAIN, *TEST)]
    if odd:
        found.append(f"{listed.where}: {odd[0]} is taken for a class, and has the name of a split")
    train, test = _named_like_splits(listed.classes)
    if train and test and not odd:
        found.append(
            f"{listed.where}: {train} and {test} are taken for classes, and look like splits: give data.train={train} "
            f"data.test={test} if they are"
        )
    return found


def _named_like_splits(names: Sequence[str]) -> tuple[str | None, str | None]:
    """Returns a name that speaks of training and one that speaks of testing: train_images, seg_test, Val2017."""
    spoken = {name: [word for word in _words(name) if _WORD.fullmatch(word)] for name in names}
    train = next((name for name, words in spoken.items() if any(word.startswith("train") for word in words)), None)
    test = next((name for name, words in spoken.items() if words and not words[0].startswith("train")), None)
    return train, test


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _splits_within(listed: Listing) -> dict[str, set[str]]:
    """Returns for each class the folders directly in it that are named like splits."""
    found: dict[str, set[str]] = {}
    for inside, _ in listed.index.note.get("folders", ()):
        owner, _, name = inside.partition(os.sep)
        if owner in listed.classes and name.lower() in (*TRAIN, *TEST):
            found.setdefault(owner, set()).add(name)
    return found

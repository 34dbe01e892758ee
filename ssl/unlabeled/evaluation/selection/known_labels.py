"""The labels of a pool that are known so far, from a list that a person filled in."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlabeled.core.escaping import escaped
from unlabeled.core.phrases import shorten_list
from unlabeled.data.labels import matches
from unlabeled.data.lists.list_files import class_order, read_rows
from unlabeled.data.source import Source
from unlabeled.errors import UserError


@dataclass(frozen=True)
class KnownLabels:
    """Images whose label is known."""

    rows: list[int]  # positions in the source, as listed
    labels: list[int]  # of each, a number of a class
    classes: list[str]


def read_known_labels(file: Path, key: str, source: Source) -> KnownLabels:
    """Reads a list of labelled images of a source.

    Args:
        file: ``.csv``, ``.tsv`` or ``.parquet`` with columns of paths and of labels, in which rows without a label are
            passed over; or ``.txt``, one name a line, whose labels are those that the source has itself. An image is
            named as in a ``labels_file``, or by its path relative to the folder of the list.
        key: key and value that give the file, for errors.
        source: the images.

    Raises:
        UserError: the file cannot be read, names no labelled image, or images that the source does not have.
    """
    names, given = read_rows(file, key)
    if file.suffix.lower() == ".txt":
        rows = _rows_of(names, file, key, source)
        _refuse_unlabelled([name for name, row in zip(names, rows, strict=True) if source.labels[row] < 0], key)
        return KnownLabels(rows, source.labels[rows].tolist(), source.classes)
    told = [(name, label) for name, label in zip(names, given, strict=True) if label is not None]
    if not told:
        raise UserError(f"{key}: no row has a label; fill in its column label, at least for one image")
    rows = _rows_of([name for name, _ in told], file, key, source)
    classes = source.classes or class_order([label for _, label in told])
    unknown = [label for _, label in told if label not in classes]
    if unknown:
        raise UserError(
            f"{key}: class {unknown[0]} is none of the images' own: {shorten_list(classes)}; mend the label"
        )
    return KnownLabels(rows, [classes.index(label) for _, label in told], classes)


def _rows_of(names: Sequence[str], file: Path, key: str, source: Source) -> list[int]:
    """Finds the image that each line names. Raises UserError where it is none, or several, or was named before."""
    found = matches([escaped(name.strip()) for name in names], source)
    beside = matches([escaped(os.path.abspath(file.parent / name.strip())) for name in names], source)
    found = [one or other for one, other in zip(found, beside, strict=True)]
    for problem, wrong in (
        ("not among the images", [name for name, ids in zip(names, found, strict=True) if not ids]),
        ("ambiguous", [name for name, ids in zip(names, found, strict=True) if len(ids) > 1]),
    ):
        if wrong:
            some = shorten_list(wrong[:3])
            raise UserError(
                f"{key}: {len(wrong)} of {len(names)} names are {problem}: {some}; mend the list, or data=…"
            )
    rows = [ids[0] for ids in found]
    if len({*rows}) < len(rows):
        again = next(name for place, name in enumerate(names) if rows[place] in rows[:place])
        raise UserError(f"{key}: names {again} twice; leave one of the two out")
    return rows


def _refuse_unlabelled(names: Sequence[str], key: str) -> None:
    if names:
        raise UserError(
            f"{key}: {shorten_list(names[:3])} has no label among the images; give a .csv with columns path and label"
        )

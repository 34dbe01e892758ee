"""Finds image files that are listed twice, under any names: by device and inode."""

import os
from dataclasses import replace

import numpy as np

from unlabeled.core.reading import shown_path
from unlabeled.data.lists.left_out import leave_out
from unlabeled.data.lists.listing import Listing, index_of
from unlabeled.data.lists.walk import SAME
from unlabeled.errors import UserError


def each_once(joined: Listing) -> Listing:
    """Drops further names of the same file from a list that was joined of several; counts them as left out."""
    inodes = joined.index.numbers("inode")
    values, counts = np.unique(inodes, return_counts=True)
    seen, further = set[tuple[int, int]](), list[int]()
    for row in np.flatnonzero(np.isin(inodes, values[counts > 1])).tolist():
        identity = _identity(joined, row)
        further += [row] if identity in seen else []
        seen |= {identity} if identity else set()
    if not further:
        return joined
    for row in further:
        leave_out(joined.left_out, SAME, joined.path(row))
    rest = np.setdiff1d(np.arange(len(inodes)), further)
    paths = [joined.index.text("path", row) for row in rest.tolist()]
    return replace(joined, index=index_of(paths, inodes[rest]), owners=joined.owners[rest])


def trained_on(test: Listing, train: Listing) -> list[str]:
    """Returns a warning if some test images are training images too.

    Raises:
        UserError: all of them are.
    """
    both = np.intersect1d(test.index.numbers("inode"), train.index.numbers("inode"))
    known = {_identity(train, row) for row in _rows(train, both)} - {None}
    found = [row for row in _rows(test, both) if _identity(test, row) in known]
    if not found:
        return []
    total, example = len(test.index), shown_path(test.path(found[0]))
    if len(found) == total:
        raise UserError(
            f"all {total:,} images of {test.where} are trained on too ({example}): give data.test=<other images>, or "
            "data.test=none"
        )
    return [
        f"{len(found):,} of the {total:,} images of {test.where} are trained on too ({example}), so accuracies on them "
        "say little"
    ]


def _rows(listed: Listing, inodes: np.ndarray) -> list[int]:
    rows: list[int] = np.flatnonzero(np.isin(listed.index.numbers("inode"), inodes)).tolist()
    return rows


def _identity(listed: Listing, row: int) -> tuple[int, int] | None:
    """Returns device and inode of a file as it is now; some file systems make up inodes, so these are asked again."""
    try:
        status = os.stat(listed.root / listed.path(row))
    except OSError:
        return None
    return status.st_dev, status.st_ino

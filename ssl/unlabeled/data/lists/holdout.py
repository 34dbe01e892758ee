"""Holds out some of the images of class folders as a test split, chosen by the hash of each image's name."""

import hashlib
import os
from dataclasses import replace

import numpy as np

from unlabeled.data.lists.listing import Listing, index_of
from unlabeled.errors import UserError

HELD = " (data.holdout)"  # behind the name of the folder


def hold_out(listed: Listing, share: float) -> tuple[Listing, Listing]:
    """Splits a list into the images to train on and those to test on.

    An image is held out if the hash of its path, relative to the folder of the list, lies in the lowest ``share`` of
    all hashes. So no image changes sides when others are added or removed, or when the folder is moved. Of a class all
    of whose images would be held out, the one with the highest hash is trained on, and so it is of a whole list.

    Args:
        listed: N images.
        share: that is held out on average, above 0 and below 1.
    """
    names = [listed.path(row) for row in range(len(listed.index))]
    hashes = np.array([name_hash(name) for name in names], np.float64)
    held = hashes < share
    for number in np.unique(listed.owners[listed.owners >= 0]):
        own = np.flatnonzero(listed.owners == number)
        if held[own].all():
            held[own[hashes[own].argmax()]] = False
    if len(held) and held.all():
        held[hashes.argmax()] = False
    rest = replace(listed, left_out={})  # said once, beside the training images
    return _chosen(listed, ~held, listed.where), _chosen(rest, held, listed.where + HELD)


def hold_out_all(listings: list[Listing], share: float) -> tuple[list[Listing], list[Listing]]:
    """Splits each of several lists as :func:`hold_out` does. Raises UserError if no image is held out of any."""
    pairs = [hold_out(listed, share) for listed in listings]
    trains, tests = [train for train, _ in pairs], [test for _, test in pairs if len(test.index)]
    if not tests:
        total = sum(len(listed.index) for listed in listings)
        raise UserError(f"data.holdout={share}: none of {total:,} images is held out; give a larger share")
    return trains, tests


def name_hash(name: str) -> float:
    """Maps a path to a number in [0, 1) that is the same on every machine: the first 48 bits of its SHA-256."""
    digest = hashlib.sha256(os.fsencode(name.replace(os.sep, "/"))).digest()
    return float(int.from_bytes(digest[:6], "big") / 2**48)


def _chosen(listed: Listing, rows: np.ndarray, where: str) -> Listing:
    """Keeps some rows, and the classes that they are of."""
    kept = np.flatnonzero(rows)
    index = index_of([listed.index.text("path", row) for row in kept.tolist()], listed.index.numbers("inode")[kept])
    present, owners = np.unique(listed.owners[kept], return_inverse=True)
    unlabelled = int(np.count_nonzero(present < 0))  # -1 comes first
    classes = [listed.classes[number] for number in present[unlabelled:]]
    return replace(listed, index=index, owners=owners - unlabelled, classes=classes, where=where)

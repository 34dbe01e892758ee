"""Finds duplicate images, with equal pixels or nearly so: within train, within test, and across both."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.inspect.perceptual import Ints, near_pairs
from unlabeled.data.inspect.survey import Survey

MOST_PAIRS = 100_000  # pairs that are kept, the nearest ones: frames of a video make billions; all are counted
PLACES = ("train", "train and test", "test")  # index: how many images of a pair are in test


@dataclass
class ImageHashes:
    """Hashes of the images of both splits, train first, by which duplicates are found. N is the number of images."""

    digests: NDArray[np.uint64]  # [N, 2]
    hashes: NDArray[np.uint16]  # [N, 4]
    plain: NDArray[np.bool_]  # [N]
    test: NDArray[np.bool_]  # [N], images of the test split
    labels: Ints  # [N], -1 where there is none


@dataclass
class ExactDuplicates:
    """Groups of images with equal pixels."""

    first: Ints  # [N], the first image with the same pixels, which may be the image itself
    groups: list[Ints]  # images with equal pixels, per group, ascending
    repeated: dict[str, int]  # images equal to an earlier one in train, in test; both: test ones equal to one of train
    conflicts: list[bool]  # per group: its images have more than one label


@dataclass
class NearDuplicates:
    """Pairs of images that look alike without equal pixels; of a group with equal pixels only the first is compared."""

    pairs: Ints  # [P, 3]: two images and the number of bits, the nearest first
    count: dict[str, int]  # pairs by place, including those beyond MOST_PAIRS
    conflicts: int  # pairs with two labels
    test_images: int  # test images similar to one of train and equal to none


def find_duplicates(surveys: list[Survey], labels: list[Ints]) -> ImageHashes:
    """Collects the hashes of train and test, or of train alone; ``labels`` are those of the surveyed images of each."""
    return ImageHashes(
        np.concatenate([each.digests for each in surveys]),
        np.concatenate([each.hashes for each in surveys]),
        np.concatenate([each.plain for each in surveys]),
        np.repeat(np.arange(len(surveys)) == 1, [len(each.ids) for each in surveys]),
        np.concatenate(labels),
    )


def find_equal(images: ImageHashes) -> ExactDuplicates:
    """Groups images that have equal digests."""
    first = first_of_equal(images.digests)
    repeats = np.flatnonzero(first != np.arange(len(first)))
    members = np.isin(first, first[repeats])  # images of a group
    order = np.flatnonzero(members)[np.argsort(first[members], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(first[order])) + 1) if len(order) else []
    train_first = ~images.test[first]  # train comes before test
    repeated = {
        "train": int((~images.test[repeats]).sum()),
        "train and test": int((images.test & train_first).sum()),
        "test": int(images.test.sum() - len(np.unique(first[images.test]))),
    }
    return ExactDuplicates(first, groups, repeated, [_labels_differ(images.labels[group]) for group in groups])


def first_of_equal(digests: NDArray[np.uint64]) -> Ints:
    """Returns for each row of [N, 2] the index of the first row that equals it, [N]."""
    order = np.lexsort(digests.T)
    ordered = digests[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def find_near(images: ImageHashes, exact: ExactDuplicates, distance: int) -> NearDuplicates:
    """Finds all pairs whose hashes differ in at most ``distance`` bits; plain images are left out."""
    chosen = np.flatnonzero((exact.first == np.arange(len(exact.first))) & ~images.plain)
    like_train, count, conflicts = np.zeros(len(images.test), bool), np.zeros(3, np.int64), 0
    kept = np.empty((0, 3), np.int64)
    for one, other, bits in near_pairs(images.hashes[chosen], distance):
        a, b = chosen[one], chosen[other]
        count += np.bincount(images.test[a].astype(np.int64) + images.test[b], minlength=3)
        labels = images.labels[[a, b]]
        conflicts += int(((labels[0] != labels[1]) & (labels >= 0).all(0)).sum())
        like_train[b[~images.test[a]]] = True  # a < b, and train comes before test
        kept = _nearest(np.concatenate([kept, np.stack([a, b, bits], 1)]))
    found = (images.test & like_train)[exact.first]  # an image equal to one of train has its first copy in train
    return NearDuplicates(kept, dict(zip(PLACES, count.tolist(), strict=True)), conflicts, int(found.sum()))


def _nearest(pairs: Ints) -> Ints:
    order = np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))
    return pairs[order[:MOST_PAIRS]]


def _labels_differ(labels: Ints) -> bool:
    return len(np.unique(labels[labels >= 0])) > 1

"""Describes how a data set was read: its splits, their classes, and the images of each."""

from collections.abc import Sequence

from unlabeled.data.lists.left_out import LeftOut, of_corrupt, sum_counts
from unlabeled.data.source import Source, Splits


def summarize_data(splits: Splits) -> list[str]:
    """Returns a line for each split: "train: 1,347 images, 10 classes of 131 to 140 images"."""
    tests = {} if splits.test is None else {"test": splits.test}
    named = {"train": splits.train} | tests | {f"test {name}": other for name, other in splits.others.items()}
    lines = [f"{name}: {_counts(source)}" for name, source in named.items()]
    return lines if tests else [*lines, "test: none"]


def all_left_out(splits: Splits, corrupt: Sequence[str]) -> LeftOut:
    """Counts the files that are not images, and the images that could not be decoded so far, by their names."""
    return sum_counts([splits.left_out, of_corrupt(list(corrupt))])


def _counts(source: Source) -> str:
    images = f"{len(source):,} {'image' if len(source) == 1 else 'images'}"
    if not source.classes:
        return f"{images}, no labels"
    counts = source.labels[source.labels >= 0].bincount(minlength=len(source.classes))
    low, high = int(counts.min()), int(counts.max())
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    classes = f"{len(source.classes):,} {'class' if len(source.classes) == 1 else 'classes'}"
    without = int((source.labels < 0).sum())
    return f"{images}, {classes} of {each} images" + (f", {without:,} without a label" if without else "")

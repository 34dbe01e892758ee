"""What top-1 hides where classes have unlike numbers of images."""

import torch
from torch import Tensor

from unlabeled.evaluation.probe import Score

MOST = 2  # times the images of the smallest class, beyond which the mean over classes stands beside top-1
METRIC = "mean_per_class_top1"
SHOWN = 5  # classes without images, by their names


def imbalanced(labels: Tensor) -> bool:
    """Whether the largest class of int64 [N] has more than ``MOST`` times the images of the smallest that has any."""
    counts = labels.bincount()
    present = counts[counts > 0]
    return bool(present.max() > MOST * present.min())


def mean_per_class(predictions: Tensor, labels: Tensor) -> float:
    """Mean over the classes with images in ``labels`` int64 [N] of their top-1, in per cent: each counts alike."""
    right = (predictions == labels).double()
    images = labels.bincount()
    hits = torch.zeros(len(images), dtype=torch.float64, device=labels.device).scatter_add_(0, labels, right)
    present = images > 0
    return 100 * float((hits[present] / images[present]).mean())


def add_mean_per_class(score: Score, labels: Tensor) -> None:
    """Give a score of one prediction of test images this metric, where their classes are imbalanced."""
    if score.predictions is not None and imbalanced(labels):
        score.metrics.setdefault(METRIC, mean_per_class(score.predictions.to(labels.device), labels))


def notes_on_labels(labels: Tensor, classes: int | list[str], where: str) -> list[str]:
    """Sentences on labels int64 [N], -1 where there is none: of a class that is alone, and of classes without images.

    Args:
        labels: of the images.
        classes: their names, or how many there are.
        where: which images they are, a word.
    """
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    known = labels[labels >= 0]
    if not len(known):
        return []
    counts = known.bincount(minlength=len(names))
    if int((counts > 0).sum()) == 1:
        only = names[int(counts.argmax())]
        return [f"All {len(known):,} labelled {where} images are of one class, {only}: there is nothing to tell apart."]
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    shown = ", ".join(empty[:SHOWN]) + (", …" if len(empty) > SHOWN else "")
    return [f"{len(empty)} of {len(names)} classes have no {where} image: {shown}."] if empty else []

"""Shared parts of linear classifiers: standardised features, a split of train, and notes on chosen values.

A head is one matrix [C, D + 1] whose last column is the bias: the features carry a column of ones.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlabeled.data.labels import shuffled_by_class
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, require_finite, top1
from unlabeled.evaluation.probe import Head, Score

FLOAT64_UP_TO = 20_000_000  # numbers in the train features; above it float64 takes too long for the digits it gains
CHUNK_BYTES = 32 * 2**20  # logits held at a time


class Scaling(NamedTuple):
    """Zero mean and unit deviation of each feature, by statistics of the images a head was fitted on."""

    mean: Tensor  # [D], float32 or float64
    scale: Tensor  # [D]; 1 where a feature is constant

    @classmethod
    def of(cls, train: Tensor, dtype: torch.dtype | None = None) -> "Scaling":
        """Measures [N, D] in ``dtype``; None: float64 up to FLOAT64_UP_TO numbers and float32 above."""
        dtype = dtype or (torch.float64 if train.numel() <= FLOAT64_UP_TO else torch.float32)
        std, mean = torch.std_mean(train.to(dtype), dim=0, correction=0)
        constant = std <= 1e-6 * mean.abs()  # a constant float32 column leaves only rounding; <= includes 0 <= 0
        return cls(mean, torch.where(constant, 1.0, std))

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [N, D] to [N, D + 1], a column of ones behind."""
        kind = torch.promote_types(x.dtype, self.mean.dtype)
        out = x.new_ones(len(x), x.shape[1] + 1, dtype=kind)  # filled in place: x may be most of the memory
        out[:, :-1].copy_(x).sub_(self.mean).div_(self.scale)
        return out


def standardise(train: Tensor, *others: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Maps each [N, D] to [N, D + 1] by the :class:`Scaling` of ``train``; ``dtype`` as there.

    Raises UserError on features that are not finite.
    """
    require_finite("the probe", train, *others)
    scaling = Scaling.of(train, dtype)
    return [scaling(x) for x in (train, *others)]


def linear_head(
    weight: Tensor, train: Tensor, classes: Tensor, features: str, held: tuple[Tensor, Tensor] | None
) -> Head:
    """Makes what is kept of a head [c, D + 1] for ``classes`` [c], fitted on standardised features of ``train``."""
    scaling = Scaling.of(train, weight.dtype)
    return Head("linear", features, {"weight": weight, **scaling._asdict(), "columns": classes}, held=held)


def split_holdout(labels: Tensor, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns rows to fit on and to hold out: ``holdout`` of each class, at least one, never a class's last image."""
    by_class, rank = shuffled_by_class(labels, seed)
    counts = labels.bincount()
    held = torch.minimum((holdout * counts).round().clamp(min=1), counts - 1).clamp(min=0)
    chosen = rank < held.repeat_interleave(counts)
    if not bool(chosen.any()):
        raise UserError(
            "no class has two labelled train images: nothing is left to choose hyper-parameters on; give more labels,"
            " or one value of each setting, or holdout=null where there is nothing to choose"
        )
    return by_class[~chosen].sort().values, by_class[chosen].sort().values


def predict(weight: Tensor, x: Tensor) -> Tensor:
    """Returns the class [N] of the largest logit of a head [C, D + 1]; the first among equals."""
    rows = chunk_rows(weight, x)
    return torch.cat([(part @ weight.T).argmax(dim=1) for part in torch.split(x, rows)])


def score_head(
    protocol: str, weight: Tensor, x: Tensor, test: Features, classes: Tensor, num_classes: int, chosen: dict[str, Any]
) -> Score:
    """Scores a head [c, D + 1] for the ``classes`` [c] that train has, on standardised test features ``x``."""
    predictions, log_probabilities = classify(weight, x, classes, num_classes)
    score = top1(predictions, test.labels)
    return Score(protocol, score, chosen, unseen_class_notes(len(classes), num_classes), predictions, log_probabilities)


def classify(weight: Tensor, x: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the class int64 [N] and log probabilities float32 [N, C] of standardised features ``x`` [N, D + 1]."""
    log_probabilities = x.new_full((len(x), num_classes), -torch.inf, dtype=torch.float32)
    rows = chunk_rows(weight, x)
    for part, own in zip(torch.split(x, rows), torch.split(log_probabilities, rows), strict=True):
        own[:, classes] = (part @ weight.T).log_softmax(dim=1).float()
    return classes[predict(weight, x)], log_probabilities


def chunk_rows(weight: Tensor, x: Tensor) -> int:
    """Returns how many rows of ``x`` have their logits in memory at a time."""
    return max(1, CHUNK_BYTES // (len(weight) * x.element_size()))


def best_position(values: list[float], scores: list[float], name: str, key: str) -> tuple[int, list[str]]:
    """Returns the position of the best score, of equals the smallest value, and a note if only an end is best."""
    best = scores.index(max(scores))
    if len(values) > 1 and max(scores) > max(scores[1:-1], default=-1.0):
        edge = f"The best {name}, {values[best]:g}, is at an edge of {values[0]:g} to {values[-1]:g}: widen {key}."
        return best, [edge]
    return best, []


def selection_notes(tried: dict[str, float], holdout: float, held: int, seed: int) -> dict[str, Any]:
    """Returns a report's facts about a choice: top-1 on the holdout for each value tried."""
    return {"chosen_on": "train", "holdout": holdout, "holdout_images": held, "seed": seed, "holdout_top1": tried}


def unseen_class_notes(classes_in_train: int, num_classes: int) -> list[str]:
    """Returns a note where train has fewer classes than there are."""
    missing = num_classes - classes_in_train
    return [f"{missing} of {num_classes} classes have no train image and are never predicted."] if missing else []


def check_grid(key: str, values: Sequence[float], smallest: float = 0.0, included: bool = False) -> list[float]:
    """Returns sorted unique ``values``. Raises UserError naming ``key`` where one is not above ``smallest``."""
    if not values or min(values) < smallest or (min(values) == smallest and not included):
        raise UserError(
            f"{key} is {values}; it needs one or more numbers {'from' if included else 'above'} {smallest:g}"
        )
    return sorted(set(values))


def check_share(key: str, value: float) -> float:
    """Checks a share of train to hold out. Raises UserError naming ``key``."""
    if not 0 < value <= 0.5:
        raise UserError(f"{key} is {value}; allowed: above 0, at most 0.5 (a share of train)")
    return value


def check_at_least_1(key: str, value: int) -> int:
    """Checks a count. Raises UserError naming ``key``."""
    if value < 1:
        raise UserError(f"{key} is {value}; allowed: 1 or more")
    return value

"""The protocols of the transfer table: logistic regression, k-NN, and logistic regression on few images of a class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.downstream.vision_task import VisionTask, few_of_each_class
from unlabeled.evaluation.features import Features, full_float32, require_finite
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.linear import predict
from unlabeled.evaluation.probes.logistic import fit_logistic

# SimCLR (arXiv 2002.05709), appendix B.8, after Kornblith et al. 2019: 45 values, spaced evenly on a logarithmic scale
PENALTIES = tuple(float(c) for c in np.logspace(-6, 5, 45))
# Of the gradient while C is chosen: 45 accuracies on 2,000 rows of 100 classes differed from those at 1e-6 by one row
# at three values of C above 1e3, and took four fifths of the time
TO_CHOOSE = 1e-5


@dataclass(frozen=True)
class Judged:
    """What one protocol says of one network on one data set."""

    protocol: str
    value: float  # per cent in the task's metric; the mean where there are draws
    predictions: Tensor | None = None  # int64 [N] of the test images; None where there are draws
    draws: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # what was chosen; plain JSON


def linear(task: VisionTask, penalties: Sequence[float], max_iter: int) -> Judged:
    """Fits for every C on train, takes the best on validation (the smallest of equals), refits on both, tests once.

    Minimises mean cross entropy + |W|²/(2·C·N), bias free, on features as they are: scikit-learn's C.
    """
    require_finite("transfer", task.train.x, task.validation.x, task.test.x)
    ascending, weight, scores, weights = sorted(penalties), None, [], []
    with full_float32(task.train.x.device), torch.no_grad():
        inputs = _Inputs(task.train, torch.float32)  # to choose by; what is reported is fitted in float64
        held = inputs(task.validation)
        for c in ascending:  # each from the last solution
            weight, _ = fit_logistic(inputs.x, inputs.labels, c, len(inputs.classes), max_iter, weight, TO_CHOOSE)
            weights.append(weight)
            scores.append(task.measure(inputs.classes[predict(weight.float(), held)], task.validation.labels))
        best = scores.index(max(scores))
        final = _Inputs(task.everything)
        start = weights[best] if len(final.classes) == len(inputs.classes) else None
        found, _ = fit_logistic(final.x, final.labels, ascending[best], len(final.classes), max_iter, start)
        predictions = final.classes[predict(found, final(task.test))]
    tried = {f"{c:.3g}": round(score, 3) for c, score in zip(ascending, scores, strict=True)}
    facts = {"C": ascending[best], "validation": tried, "at_an_edge": best in (0, len(ascending) - 1)}
    return Judged("linear", task.measure(predictions, task.test.labels), predictions, facts=facts)


class _Inputs:
    """Centred rows with a column of ones behind; centring changes no optimum, as the bias is free."""

    def __init__(self, features: Features, dtype: torch.dtype = torch.float64) -> None:
        self.classes, self.labels = torch.unique(features.labels, return_inverse=True)
        self._mean, self._dtype = features.x.double().mean(dim=0), dtype
        self.x = self(features)

    def __call__(self, features: Features) -> Tensor:
        centred = (features.x.double() - self._mean).to(self._dtype)
        return torch.cat([centred, centred.new_ones(len(centred), 1)], dim=1)


def nearest_neighbours(task: VisionTask, k: int, temperature: float) -> Judged:
    """Classifies by the weighted k-NN of train and validation together."""
    score = KNN([k], temperature).fit_predict(task.everything, task.test, len(task.classes))[0]
    assert score.predictions is not None
    value = task.measure(score.predictions, task.test.labels)
    return Judged(f"k-NN {k}", value, score.predictions, facts={"temperature": temperature})


def few_shots(task: VisionTask, count: int, draws: int, c: float, max_iter: int, seed: int) -> Judged:
    """Fits on ``count`` images of each class of train, ``draws`` times, with C fixed: nothing is left to choose it on.

    The features are divided by the mean length of those of train, so that one C means the same for every network.
    """
    values = []
    with full_float32(task.train.x.device), torch.no_grad():
        length = task.train.x.double().norm(dim=1).mean().clamp(min=1e-12)
        for draw in range(draws):
            few = task.train.rows(few_of_each_class(task.train.labels, count, seed + draw))
            inputs = _Inputs(_scaled(few, length), torch.float32)
            weight, _ = fit_logistic(inputs.x, inputs.labels, c, len(inputs.classes), max_iter)
            predictions = inputs.classes[predict(weight.float(), inputs(_scaled(task.test, length)))]
            values.append(task.measure(predictions, task.test.labels))
    return Judged(f"{count} a class", float(np.mean(values)), None, values, {"C": c, "draws": draws})


def _scaled(features: Features, length: Tensor) -> Features:
    return Features(features.x / length.to(features.x.dtype), features.labels, features.ids)

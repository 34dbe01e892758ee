"""A data set of the transfer table as features, and its metric."""

from dataclasses import dataclass

from torch import Tensor

from unlabeled.data.labels import shuffled_by_class
from unlabeled.data.sources.published_sets import PER_CLASS, TOP1
from unlabeled.evaluation.features import Features, concatenate, top1
from unlabeled.evaluation.probe import mean_per_class
from unlabeled.evaluation.probes.linear import split_holdout

METRICS = {TOP1: top1, PER_CLASS: mean_per_class}
HOLDOUT = 0.2  # of train, where a data set publishes no validation split; our choice


@dataclass(frozen=True)
class VisionTask:
    """Features of a data set by one network; all images are labelled."""

    name: str
    metric: str  # a key of METRICS, the one that papers report for this set
    classes: list[str]
    train: Features
    validation: Features  # hyper-parameters are chosen on it
    test: Features
    published: bool  # whether the validation split is the data set's own

    @property
    def everything(self) -> Features:
        """Returns train and validation together: what the final classifier is fitted on."""
        return concatenate([self.train, self.validation])

    def measure(self, predictions: Tensor, labels: Tensor) -> float:
        """Returns the metric in per cent."""
        return METRICS[self.metric](predictions, labels)


def vision_task(
    name: str, metric: str, classes: list[str], train: Features, validation: Features | None, test: Features, seed: int
) -> VisionTask:
    """Makes a task; without a validation split, a fifth of each class of train takes its place, drawn by ``seed``.

    Raises UserError where no class of train has two images.
    """
    if validation is not None:
        return VisionTask(name, metric, classes, train, validation, test, True)
    fit, held = split_holdout(train.labels, HOLDOUT, seed)
    return VisionTask(name, metric, classes, train.rows(fit), train.rows(held), test, False)


def few_of_each_class(labels: Tensor, count: int, seed: int) -> Tensor:
    """Returns rows int64 of ``count`` images of each class in ``labels`` int64 [N], all of a class that has fewer."""
    order, rank = shuffled_by_class(labels, seed)
    return order[rank < count].sort().values

"""Ensembles: several exact linear heads on resampled train images, or the predictions of separate runs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.core.ranges import AtLeastTwo, AtMostHalf, Count, Positive, Seed, SomeOf
from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, full_float32
from unlabeled.evaluation.predictions import read_predictions
from unlabeled.evaluation.probe import Score, with_kind
from unlabeled.evaluation.probes.linear import split_holdout, standardise
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe, fit_logistic
from unlabeled.evaluation.uncertainty.members import Pool, expand_to_all_classes, pool_heads, pool_members, pooled_score

WHY_RESAMPLED = (
    "The heads differ by the train images they were fitted on. Other seeds on the same images would give the same head "
    "again, because the problem is convex."
)
NO_TEMPERATURE = "No temperature was fitted: the runs kept no predictions of images set aside from train."


class Bootstrap:
    """L-BFGS heads on stratified bootstrap resamples of the cached features (bagging, Breiman 1996).

    Classes keep their sizes in every resample: the bias of a class that is missing would have no optimum.

    Args:
        members: heads, at least 2.
        c, holdout, seed, max_iter: as of :class:`unlabeled.evaluation.probes.logistic.LogisticRegressionProbe`, which
            chooses C first. ``seed`` is of the resamples too. The temperature is fitted on the same held-out images,
            with members that have not seen them.
        features: the kind to classify (``Backbone.kinds``).
    """

    needs = 2

    def __init__(
        self,
        members: AtLeastTwo,
        c: SomeOf[Positive],
        holdout: AtMostHalf,
        seed: Seed,
        max_iter: Count,
        features: str = "last",
    ) -> None:
        if members < 2:
            raise UserError(f"probe.ensemble.members={members}: must be at least 2")
        self._single = LogisticRegressionProbe(c, holdout, seed, max_iter)
        self.kinds = (features,)
        self.members, self.holdout, self.seed, self.max_iter = members, holdout, seed, max_iter

    @property
    def protocol(self) -> str:
        """Returns the name under which a score of this probe is reported."""
        return with_kind(f"ensemble/bootstrap-lbfgs/M={self.members}", self.kinds[0])

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score of the pooled heads; its ``single_top1`` is the one head fitted on all of train."""
        train, test = (each.of(self.kinds[0]) for each in (train, test))
        (single,) = self._single.fit_predict(train, test, num_classes)
        c = single.chosen["C"]
        with full_float32(train.x.device), torch.no_grad():
            classes, labels = torch.unique(train.labels, return_inverse=True)
            fit, held = split_holdout(labels, self.holdout, self.seed)
            spared = self._pool(train.x[fit], labels[fit], train.x[held], c)
            whole = self._pool(train.x, labels, test.x, c)
        for each in (spared, whole):
            each.log_probabilities = expand_to_all_classes(each.log_probabilities, classes, num_classes)
        whole.predictions = classes[whole.predictions]
        chosen = single.chosen | {"members": self.members, "temperature_on": f"{len(held)} held-out train images"}
        calibration = (spared.log_probabilities, train.labels[held])
        score = pooled_score(self.protocol, whole, test.labels, calibration, chosen, [*single.notes, WHY_RESAMPLED])
        score.metrics["single_top1"] = single.top1
        return [score]

    def _pool(self, x: Tensor, labels: Tensor, queries: Tensor, c: float) -> Pool:
        # float32 halves the time, and the heads differ by far more than its rounding
        x, queries = (part.float() for part in standardise(x, queries))
        heads = bootstrap_heads(x, labels, self.members, c, self.seed, self.max_iter)
        return pool_heads(heads.to(queries), queries)


def bootstrap_heads(x: Tensor, labels: Tensor, members: int, c: float, seed: int, max_iter: int) -> Tensor:
    """Fits heads [S, C, D + 1] on stratified resamples of ``x`` [N, D + 1], ``labels`` int64 [N] from 0 to C − 1."""
    heads, count = [], int(labels.max()) + 1
    for member in range(members):
        rows = resample(labels, derive_seed(seed, member))
        heads.append(fit_logistic(x[rows], labels[rows], c, count, max_iter)[0])
    return torch.stack(heads)


def resample(labels: Tensor, seed: int) -> Tensor:
    """Draws rows [N] with replacement within each class of ``labels`` int64 [N], as many of each as there are."""
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    uniform = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return order[first + (uniform.to(labels.device) * counts.repeat_interleave(counts)).long()]


def ensemble_of_reports(folders: Sequence[Path]) -> list[Score]:
    """Pools separate pretrainings from their stored predictions: one Score for each protocol that all have.

    Args:
        folders: of reports with ``predictions.safetensors``, all of the same test images; their pretrained rows with
            log-probabilities are pooled.

    Raises:
        UserError: fewer than two folders, other test images, or no protocol in common.
    """
    if len(folders) < 2:
        raise UserError(f"an ensemble of runs was given {len(folders)} of them; it needs at least 2")
    runs = [read_predictions(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if not (torch.equal(run.ids, runs[0].ids) and torch.equal(run.labels, runs[0].labels)):
            raise UserError(f"{folder} was evaluated on other test images than {folders[0]}: use the same data")
    shared = [key for key in runs[0].log_probabilities if all(key in run.log_probabilities for run in runs)]
    protocols = [protocol for features, protocol in shared if features == "pretrained"]
    if not protocols:
        raise UserError("the runs have no protocol with log-probabilities in common: evaluate all with probe=linear")
    return [
        deep_ensemble([run.log_probabilities["pretrained", protocol] for run in runs], runs[0].labels, protocol)
        for protocol in protocols
    ]


def deep_ensemble(runs: Sequence[Tensor], labels: Tensor, protocol: str) -> Score:
    """Pools separate pretrainings as members (Lakshminarayanan et al. 2017, arXiv 1612.01474) into one Score.

    Args:
        runs: log probabilities [N, C] of the same test images in the same order, one from each run, all of the one
            ``protocol``, which becomes ``ensemble/RUNS runs/PROTOCOL``. Rounded ones are normalised again.
        labels: int64 [N].

    Raises:
        UserError: the runs differ in images or classes.
    """
    shapes = {tuple(run.shape) for run in runs}
    if shapes != {(len(labels), runs[0].shape[1])}:
        raise UserError(f"a deep ensemble needs the same {len(labels)} test images and classes of each run: {shapes}")
    members = torch.stack([run.log_softmax(dim=1) for run in runs])
    name = f"ensemble/{len(runs)} runs/{protocol}"
    return pooled_score(name, pool_members(members), labels, None, {"chosen_on": "nothing"}, [NO_TEMPERATURE])

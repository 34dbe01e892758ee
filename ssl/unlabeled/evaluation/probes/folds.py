"""Cross-validation of a probe, for labelled sets that are too small to set test images aside."""

from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, top1
from unlabeled.evaluation.probe import Head, Probe, Score, kinds_of
from unlabeled.evaluation.probes.knn import KNN


class CrossValidated:
    """Classifies each image once, by a probe that is fitted on the other folds (Stone 1974).

    Folds are stratified: each has a k-th of each class, up to one image. Hyper-parameters are chosen within the other
    folds, as the probe does it. What is kept as a head is fitted on all images.

    Args:
        probe: of features.
        folds: how many, at least 2.
        seed: of the order in which a class's images are dealt out.
    """

    def __init__(self, probe: Probe, folds: int, seed: int) -> None:
        self.probe, self.folds, self.seed = probe, folds, seed
        self.needs = probe.needs + 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """Returns the kinds of features that the probe uses."""
        return kinds_of(self.probe)

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns the Scores of the probe, over all images; ``test`` are the same as ``train``.

        Raises:
            UserError: there are fewer images than folds.
        """
        if not torch.equal(train.ids, test.ids):
            raise ValueError("cross-validation was given two different splits")
        if len(train.labels) < self.folds:
            raise UserError(f"folds={self.folds}: there are {len(train.labels)} labelled images; give fewer folds")
        fold = assign_folds(train.labels, self.folds, self.seed)
        parts = [fold == number for number in range(self.folds)]
        probe = self.probe
        if isinstance(probe, KNN):  # the same k in all folds, which the smallest allows
            probe = probe.within(len(fold) - max(int(part.sum()) for part in parts))
        found = [probe.fit_predict(train.rows(~part), train.rows(part), num_classes) for part in parts]
        heads = self._heads(probe, train, found[0], num_classes)
        return [
            self._pooled(scores, parts, train.labels, head)
            for scores, head in zip(zip(*found, strict=True), heads, strict=True)
        ]

    def _heads(self, probe: Probe, train: Features, scores: Sequence[Score], num_classes: int) -> list[Head | None]:
        if all(score.head is None for score in scores):
            return [None] * len(scores)
        return [score.head for score in probe.fit_predict(train, train, num_classes)]

    def _pooled(self, scores: Sequence[Score], parts: Sequence[Tensor], labels: Tensor, head: Head | None) -> Score:
        """Puts what each fold's images were given into the order of all images; other metrics are means of folds."""
        predictions, log_p = (
            _placed([getattr(score, name) for score in scores], parts) for name in ("predictions", "log_probabilities")
        )
        each = [score.top1 for score in scores]
        right = mean(each) if predictions is None else top1(predictions, labels)
        shared = [key for key in scores[0].metrics if all(key in score.metrics for score in scores)]
        smallest = len(labels) - max(int(part.sum()) for part in parts)
        return Score(
            f"{scores[0].protocol}/{self.folds} folds",
            right,
            {"folds": self.folds, "seed": self.seed, "fold_top1": each, "of_each_fold": [s.chosen for s in scores]},
            list(dict.fromkeys([self._note(len(labels)), *(note for score in scores for note in score.notes)])),
            predictions,
            log_p,
            {key: mean(score.metrics[key] for score in scores) for key in shared},
            n_train=smallest,
            head=head,
        )

    def _note(self, images: int) -> str:
        return (
            f"Cross-validated: each of {images} images is classified once, by what was fitted on the other folds of "
            f"{self.folds}. A network that was pretrained on these images has seen them all, without their labels."
        )


def assign_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Returns the fold int64 [N] of each image: each class is shuffled and dealt out, where the one before stopped."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    by_class = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[by_class] = torch.arange(len(labels), device=labels.device) % folds
    return fold


def _placed(values: Sequence[Tensor | None], parts: Sequence[Tensor]) -> Tensor | None:
    """Returns rows of all folds in the order of the images; None where a fold has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    whole = known[0].new_empty(len(parts[0]), *known[0].shape[1:])
    for value, part in zip(known, parts, strict=True):
        whole[part.to(whole.device)] = value
    return whole

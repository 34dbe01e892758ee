"""Soft nearest-neighbour classification by labelled images: the evaluation of PAWS (arXiv:2104.13963, section 5.1).

Official code: facebookresearch/suncet, snn_eval.py. It compares embeddings behind projector and prediction head, with
all labelled images as supports, their labels not smoothed.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.core.ranges import Count, FilePath, Seed, SomeShare, Temperature
from unlabeled.data.labels import LabelList, LabelSelection
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, full_float32, require_finite, top1
from unlabeled.evaluation.probe import Score, with_kind
from unlabeled.objectives.paws import soft_nearest_neighbours

CHUNK_BYTES = 256 * 2**20  # similarities held at a time


class SoftNearestNeighbours:
    """Softmax of cosines over the listed training images, times their labels. Nothing is fitted.

    Args:
        temperature: of the softmax, above 0.
        labels_file, fraction, per_class, seed: which labelled images are used, see
            :class:`unlabeled.data.labels.LabelSelection`; the list of the run itself where the first three are None.
        features: the kind to compare (``Backbone.kinds``); behind a head there is only ``last``.
    """

    def __init__(
        self,
        temperature: Temperature,
        labels_file: FilePath | None,
        fraction: SomeShare | None,
        per_class: Count | None,
        seed: Seed,
        features: str = "last",
    ) -> None:
        if temperature <= 0:
            raise UserError(f"probe.paws_nn.temperature={temperature}: must be above 0")
        self.temperature = temperature
        given = (labels_file, fraction, per_class) != (None, None, None)
        self._choice = LabelSelection(labels_file, fraction, per_class, seed, "probe.paws_nn") if given else None
        self._labels: LabelList | None = None
        self._behind = ""
        self.kinds = (features,)
        self.needs = 1

    def prepare(self, source: Source, run_labels: LabelSelection | None, after: str) -> None:
        """Settles which images are compared, before features are extracted.

        Args:
            source: the training split.
            run_labels: the run's own choice of labelled images, if it made one.
            after: the module that gives the features, named in the protocol: ``head`` or ``backbone``.

        Raises:
            UserError: no choice is given and the run made none, or the choice does not fit the source; or a kind of
                features is asked for that does not go through the head.
        """
        if after == "head" and self.kinds != ("last",):
            raise UserError(f"probe.paws_nn.features={self.kinds[0]}: only last goes through the head of this run")
        choice = self._choice or run_labels
        if choice is None:
            raise UserError(
                "probe.paws_nn: the run has no list of labels; give probe.paws_nn.per_class=… or labels_file=…"
            )
        self._labels, self._behind = choice.of(source), after

    def protocol(self) -> str:
        """Returns the name under which a score of this probe is reported."""
        assert self._labels is not None
        protocol = f"paws_nn/{self._behind}/{len(self._labels.ids)} labels/T={self.temperature:g}"
        return with_kind(protocol, self.kinds[0])

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score; uses only the listed images of ``train``."""
        assert self._labels is not None
        listed = torch.isin(train.ids, self._labels.ids.to(train.ids.device))
        if not bool(listed.any()):
            raise UserError("probe.paws_nn: none of the listed images is in the training split")
        kind = self.kinds[0]
        log_p = soft_votes(test.of(kind).x, train.of(kind).rows(listed), self.temperature, num_classes)
        predictions = log_p.argmax(dim=1)
        missing = len(self._labels.ids) - int(listed.sum())
        notes = [f"{missing} of the listed images could not be decoded and were left out."] if missing else []
        chosen: dict[str, Any] = {"chosen_on": "nothing", **self._labels.summary()}
        score = top1(predictions, test.labels)
        return [Score(self.protocol(), score, chosen, notes, predictions, log_p, n_train=int(listed.sum()))]


class AllSupports:
    """The same rule over all labelled train images that it is given, for ``probe.few_labels.classifier``."""

    needs = 1

    def __init__(self, temperature: float, features: str = "last") -> None:
        if temperature <= 0:
            raise UserError(f"probe.few_labels.classifier.temperature={temperature}: must be above 0")
        self.temperature, self.kinds = temperature, (features,)

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score. Classes without a train image are never predicted."""
        kind = self.kinds[0]
        log_p = soft_votes(test.of(kind).x, train.of(kind), self.temperature, num_classes)
        predictions, protocol = log_p.argmax(dim=1), with_kind(f"soft_nn/T={self.temperature:g}", kind)
        return [Score(protocol, top1(predictions, test.labels), {"chosen_on": "nothing"}, [], predictions, log_p)]


def soft_votes(queries: Tensor, supports: Features, temperature: float, num_classes: int) -> Tensor:
    """Returns log of labels weighted by a softmax of cosines, float32 [N, C]; -inf for classes without support.

    A bounded number of similarities exists at a time. Raises UserError on features that are not finite.
    """
    require_finite("soft nearest neighbours", queries, supports.x)
    labels = F.one_hot(supports.labels, num_classes).to(supports.x.dtype)
    rows = max(1, CHUNK_BYTES // (len(supports.x) * supports.x.dtype.itemsize))
    with full_float32(supports.x.device):
        parts = [soft_nearest_neighbours(part, supports.x, labels, temperature) for part in torch.split(queries, rows)]
    # a class whose supports are all far has a tiny probability that underflows, but not zero
    smallest = torch.finfo(torch.float32).tiny
    p = torch.cat(parts).float().clamp(min=smallest)
    return p.log().masked_fill(~labels.bool().any(dim=0), -math.inf)

"""Soft nearest neighbours among labelled images: the evaluation of PAWS (arXiv:2104.13963, section 5.1).

Official code: facebookresearch/suncet, snn_eval.py. It compares embeddings behind projector and prediction head, with
all labelled images as supports, their labels not smoothed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.data.labels import LabelChoice, LabelList
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, Score, full_float32, top1
from unlabeled.objectives.paws import soft_nearest_neighbours

CHUNK_BYTES = 256 * 2**20  # similarities held at a time


class SoftNearestNeighbours:
    """The probe: softmax of cosines over the listed training images, times their labels. Nothing is fitted.

    Args:
        temperature: of the softmax, above 0.
        labels_file, fraction, per_class, seed: which labelled images are used, see
            :class:`unlabeled.data.labels.LabelChoice`; the list of the run itself where the first three are None.
    """

    def __init__(
        self, temperature: float, labels_file: str | None, fraction: float | None, per_class: int | None, seed: int
    ) -> None:
        if temperature <= 0:
            raise UserError(f"probe.paws_nn.temperature={temperature}: must be above 0")
        self.temperature = temperature
        given = (labels_file, fraction, per_class) != (None, None, None)
        self._choice = LabelChoice(labels_file, fraction, per_class, seed, "probe.paws_nn") if given else None
        self._labels: LabelList | None = None
        self._behind = ""
        self.needs = 1

    def prepare(self, source: Source, own: LabelChoice | None, behind: str) -> None:
        """Settle what is compared, before any feature is there.

        Args:
            source: the training split.
            own: the run's own choice of labelled images, if it made one.
            behind: what the features have gone through, a word for the protocol: ``head`` or ``backbone``.

        Raises:
            UserError: no choice is given and the run made none, or the choice does not fit the source.
        """
        choice = self._choice or own
        if choice is None:
            raise UserError(
                "probe.paws_nn: the run has no list of labels; give probe.paws_nn.per_class=… or labels_file=…"
            )
        self._labels, self._behind = choice.of(source), behind

    def protocol(self) -> str:
        """The name under which a score of this probe is reported."""
        assert self._labels is not None
        return f"paws_nn/{self._behind}/{len(self._labels.ids)} labels/T={self.temperature:g}"

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """One Score; of ``train`` only the listed images are looked at."""
        assert self._labels is not None
        listed = torch.isin(train.ids, self._labels.ids.to(train.ids.device))
        if not bool(listed.any()):
            raise UserError("probe.paws_nn: none of the listed images is in the training split")
        labels = F.one_hot(train.labels[listed], num_classes).to(train.x.dtype)
        predictions = self._predict(test.x, train.x[listed], labels)
        missing = len(self._labels.ids) - int(listed.sum())
        notes = [f"{missing} of the listed images could not be decoded and were left out."] if missing else []
        chosen: dict[str, Any] = {"chosen_on": "nothing", **self._labels.summary()}
        return [Score(self.protocol(), top1(predictions, test.labels), chosen, notes)]

    def _predict(self, queries: Tensor, supports: Tensor, labels: Tensor) -> Tensor:
        rows = max(1, CHUNK_BYTES // (len(supports) * supports.dtype.itemsize))
        with full_float32(supports.device):
            parts = [
                soft_nearest_neighbours(part, supports, labels, self.temperature) for part in torch.split(queries, rows)
            ]
        return torch.cat(parts).argmax(1)

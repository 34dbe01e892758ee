"""Retrieves train images of the same class by features of test images: recall at k, mAP; nothing is fitted."""

from typing import Any

import torch
from torch import Tensor

from unlabeled.core.ranges import Count, SomeOf
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, full_float32, require_finite, top1, unit_rows
from unlabeled.evaluation.knn import neighbours
from unlabeled.evaluation.probe import Score, with_kind

CHUNK = 2**24  # similarities that are sorted at a time


class Retrieval:
    """Takes each test image as a query and ranks all train images, the gallery, by cosine similarity.

    As retrieval with a database of train images in hashing (e.g. Yuan et al. 2020, arXiv:1908.00347); recall at k of
    Song et al. 2016, arXiv:1511.06452; MAP@R of Musgrave et al. 2020, arXiv:2003.08505. Test labels only say which
    results are right.

    Args:
        at: the values of k of recall.
        queries: most test images whose whole ranking is sorted for mAP, evenly spaced; recall is of all.
        features: the kind (``Backbone.kinds``).

    Raises:
        UserError: no ``at``.
    """

    def __init__(self, at: SomeOf[Count], queries: Count, features: str = "last") -> None:
        if not at or min(at) < 1:
            raise UserError(f"probe.retrieval.at={at}: must be one or more whole numbers of at least 1")
        self.at, self.queries = sorted(set(at)), queries
        self.needs, self.kinds = 1, (features,)

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score: recall at 1 with the nearest's class as prediction, and in per cent ``recall_at_k``,
        ``map`` and ``map_at_r``. A query whose class has no train image finds nothing: 0.
        """
        gallery, queries = train.of(self.kinds[0]), test.of(self.kinds[0])
        require_finite("probe.retrieval", gallery.x, queries.x)
        most = min(max(self.at), len(gallery.labels))
        _, index = neighbours(queries.x, gallery.x, most, distance="cosine")
        found = gallery.labels[index]  # [Q, k], nearest first
        right = found == queries.labels[:, None]
        metrics = {f"recall_at_{k}": _percent(right[:, :k].any(dim=1)) for k in self.at if k > 1}
        sorted_ones = torch.arange(len(queries.labels), device=found.device)[:: -(-len(found) // self.queries)]
        metrics |= rank_metrics(
            unit_rows(queries.x[sorted_ones].float()),
            queries.labels[sorted_ones],
            unit_rows(gallery.x.float()),
            gallery.labels,
        )
        facts: dict[str, Any] = {"chosen_on": "nothing", "queries": len(found), "queries_of_map": len(sorted_ones)}
        absent = ~torch.isin(queries.labels, gallery.labels)
        notes = [f"The classes of {int(absent.sum())} test images have no train image: they find nothing."]
        name = with_kind("retrieval/cosine/test-in-train", self.kinds[0])
        accuracy = top1(found[:, 0], queries.labels)
        return [Score(name, accuracy, facts, notes if absent.any() else [], found[:, 0], metrics=metrics)]


def rank_metrics(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> dict[str, float]:
    """Ranks the gallery for each query and returns mAP and mAP at R, ``map`` and ``map_at_r`` in per cent.

    With P(i) the share of the query's class among the first i and R the number of rows of that class, the average
    precision is the mean of P(i) over the ranks i of that class; at R, ranks above R count as 0 (Musgrave et al. 2020,
    equation 2). Equal similarities are ranked in the order of the rows.

    Args:
        queries: [Q, D], unit rows.
        labels: int64 [Q].
        gallery: [N, D], unit rows.
        gallery_labels: int64 [N].
    """
    rows = max(1, CHUNK // len(gallery))
    parts = zip(torch.split(queries, rows), torch.split(labels, rows), strict=True)
    precisions = [_average_precision(_ranked(x, y, gallery, gallery_labels)) for x, y in parts]
    whole, at_r = (torch.cat(each) for each in zip(*precisions, strict=True))
    return {"map": _percent(whole), "map_at_r": _percent(at_r)}


def _ranked(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> Tensor:
    """Returns which of the ranked rows of the gallery have the query's class, bool [q, N]."""
    with full_float32(queries.device):
        similarity = queries @ gallery.T
    order = similarity.argsort(dim=1, descending=True, stable=True)
    return gallery_labels[order] == labels[:, None]


def _average_precision(relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the average precision [q] of each row of bool [q, N], and the same at R; 0 where nothing is relevant."""
    rank = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    count = relevant.sum(dim=1)
    precision = relevant * relevant.cumsum(dim=1) / rank.double()
    at_r = (precision * (rank <= count[:, None])).sum(dim=1)
    return precision.sum(dim=1) / count.clamp(min=1), at_r / count.clamp(min=1)


def _percent(values: Tensor) -> float:
    return 100 * float(values.double().mean())

"""Retrieves images of the same class by their features: recall at k and mean average precision; nothing is fitted."""

from typing import Any

import torch
from torch import Tensor

from unlabeled.core.ranges import Count, SomeOf
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, full_float32, require_finite, unit_rows
from unlabeled.evaluation.probe import Score, with_kind

CHUNK = 2**24  # similarities that are sorted at a time


class Retrieval:
    """Takes each test image as a query and ranks all other test images by cosine similarity.

    Song et al. 2016, arXiv:1511.06452 (recall at k); Musgrave et al. 2020, arXiv:2003.08505 (MAP@R). Train images and
    their labels are not used. The top-1 of its score is recall at 1.

    Args:
        at: the values of k.
        queries: most test images that are queries, evenly spaced; all are in the gallery.
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
        """Returns one Score with ``recall_at_k`` of each k, ``map`` and ``map_at_r`` in per cent.

        It has predictions, the class of the nearest image, where every test image is a query. Without two test images
        of a class there is nothing to retrieve, and no Score.
        """
        chosen = test.of(self.kinds[0])
        require_finite("probe.retrieval", chosen.x)
        alone = chosen.labels.bincount()[chosen.labels] == 1
        queries = (~alone).nonzero().flatten()
        if not len(queries):
            return []
        queries = queries[:: -(-len(queries) // self.queries)]
        metrics, nearest = rank_metrics(unit_rows(chosen.x.float()), chosen.labels, queries, self.at)
        notes = [f"{int(alone.sum())} test images are the only ones of their class: no queries."] if alone.any() else []
        whole = len(queries) == len(chosen.labels)
        facts: dict[str, Any] = {"chosen_on": "nothing", "queries": len(queries), "gallery": len(chosen.labels) - 1}
        name = with_kind(f"retrieval/cosine/test-in-test/queries={len(queries)}", self.kinds[0])
        top1 = metrics.pop("recall_at_1")
        return [Score(name, top1, facts, notes, nearest if whole else None, metrics=metrics)]


def rank_metrics(x: Tensor, labels: Tensor, queries: Tensor, at: list[int]) -> tuple[dict[str, float], Tensor]:
    """Ranks all other rows for each query and returns recall at k, mAP and mAP at R in per cent, and nearest classes.

    With P(i) the share of the query's class among the first i and R the number of other rows of that class, the average
    precision is the mean of P(i) over the ranks i of that class; at R, ranks above R count as 0 (Musgrave et al. 2020,
    equation 2). Recall at k is the share of queries with a row of their class among the first k. Equal similarities are
    ranked in the order of the rows.

    Args:
        x: [N, D], unit rows.
        labels: int64 [N].
        queries: int64 [Q], positions of rows that have another row of their class.
        at: values of k; 1 is always there.
    """
    parts = [_ranked(x, labels, rows) for rows in torch.split(queries, max(1, CHUNK // len(x)))]
    relevant_at = {k: torch.cat([part[0][:, :k].any(dim=1) for part in parts]) for k in {1, *at}}
    metrics = {f"recall_at_{k}": _percent(hits) for k, hits in sorted(relevant_at.items())}
    precisions = [_average_precision(relevant) for relevant, _ in parts]
    metrics |= {
        name: _percent(torch.cat([pair[i] for pair in precisions])) for i, name in enumerate(("map", "map_at_r"))
    }
    return metrics, torch.cat([nearest for _, nearest in parts])


def _ranked(x: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which of the ranked other rows [q, N − 1] have the query's class, and the class [q] of the first."""
    with full_float32(x.device):
        similarity = x[rows] @ x.T
    similarity[torch.arange(len(rows), device=x.device), rows] = -torch.inf  # the query itself comes last
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]
    ranked = labels[order]
    return ranked == labels[rows, None], ranked[:, 0]


def _average_precision(relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the average precision [q] of each row of bool [q, N], and the same at R."""
    rank = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    count = relevant.sum(dim=1)
    precision = relevant * relevant.cumsum(dim=1) / rank.double()
    at_r = (precision * (rank <= count[:, None])).sum(dim=1) / count
    return precision.sum(dim=1) / count, at_r


def _percent(values: Tensor) -> float:
    return 100 * float(values.double().mean())

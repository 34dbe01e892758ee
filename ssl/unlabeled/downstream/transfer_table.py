"""The transfer table: every network on every data set, mean accuracy, mean rank, and paired tests against the first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]
from torch import Tensor

from unlabeled.core.escaping import in_table
from unlabeled.downstream.protocols import Judged
from unlabeled.evaluation.statistics import Difference, holm_correction, paired_difference

SURE = 0.05  # the largest p, corrected for the number of data sets, that counts as a win or a loss


@dataclass(repr=False)
class TaskResult:
    """One data set: facts about it, and what each protocol says of each network; or why it could not be had."""

    name: str
    metric: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # description, images, classes, whose validation split
    labels: Tensor | None = None  # int64 [N] of the test images
    judged: dict[str, list[Judged]] = field(default_factory=dict)  # by network, protocols in the same order
    problem: str | None = None

    def __repr__(self) -> str:
        if self.problem is not None:
            return f"{self.name}: {self.problem}"
        told = (
            f"{network} {', '.join(f'{each.protocol} {each.value:.2f} %' for each in found)}"
            for network, found in self.judged.items()
        )
        return f"{self.name}, {self.metric}: {'; '.join(told)}"

    def of(self, network: str, protocol: str) -> Judged:
        """Returns what one protocol says of one network."""
        return next(each for each in self.judged[network] if each.protocol == protocol)


@dataclass(frozen=True)
class Summary:
    """One network under one protocol, over the data sets that could be had."""

    network: str
    mean: float  # per cent
    rank: float  # mean over data sets; 1 is the best, equals share the mean of their ranks
    wins: int | None = None  # data sets on which the first network is better than this one, by the paired test
    losses: int | None = None


@dataclass(repr=False)
class TransferTable:
    """All data sets, and the networks: the first is the one that is asked about."""

    networks: list[str]
    tasks: list[TaskResult]
    page: Path | None = None  # that was written of it

    @property
    def measured(self) -> list[TaskResult]:
        """Returns the data sets that could be had."""
        return [task for task in self.tasks if task.problem is None]

    @property
    def protocols(self) -> list[str]:
        """Returns the names of the protocols in order; none where no data set could be had."""
        return [each.protocol for each in self.measured[0].judged[self.networks[0]]] if self.measured else []

    def __repr__(self) -> str:
        return "\n\n".join([headline(self), *(self._markdown(protocol) for protocol in self.protocols)])

    def _repr_markdown_(self) -> str:
        """Returns the tables for a notebook."""
        return repr(self)

    def _markdown(self, protocol: str) -> str:
        return markdown_table([protocol, "metric", *self.networks], as_rows(self, protocol))

    def values(self, protocol: str) -> np.ndarray:
        """Returns per cent, float64 [data sets, networks]."""
        return np.array([[task.of(name, protocol).value for name in self.networks] for task in self.measured])

    def summaries(self, protocol: str) -> list[Summary]:
        """Returns the mean and the mean rank of each network, and the first network's wins and losses against it."""
        values = self.values(protocol)
        ranks = np.array([rankdata(-row) for row in values])
        found = []
        for place, name in enumerate(self.networks):
            counts = (None, None) if place == 0 else self._won_and_lost(name, protocol)
            found.append(Summary(name, float(values[:, place].mean()), float(ranks[:, place].mean()), *counts))
        return found

    def differences(self, other: str, protocol: str) -> list[Difference] | None:
        """Returns first − other in points of top-1 on each data set, image by image; None for protocols with draws."""
        pairs = [(task, task.of(self.networks[0], protocol), task.of(other, protocol)) for task in self.measured]
        found = []
        for task, a, b in pairs:
            if a.predictions is None or b.predictions is None or task.labels is None:
                return None
            found.append(paired_difference(_right(a, task.labels), _right(b, task.labels)))
        return found

    def _won_and_lost(self, other: str, protocol: str) -> tuple[int | None, int | None]:
        differences = self.differences(other, protocol)
        if differences is None:
            return None, None
        p = holm_correction([1.0 if each.p is None else each.p for each in differences])
        sure = [each.points for each, value in zip(differences, p, strict=True) if value < SURE]
        return sum(points > 0 for points in sure), sum(points < 0 for points in sure)


def _right(judged: Judged, labels: Tensor) -> np.ndarray:
    assert judged.predictions is not None
    right: np.ndarray = (judged.predictions == labels).numpy()
    return right


def headline(table: TransferTable) -> str:
    """Returns a sentence: the first network's mean, and against whom it wins."""
    if not table.measured:
        return "None of the data sets could be had: the reasons are below."
    first, *others = table.summaries(table.protocols[0])
    sets = f"{len(table.measured)} data set{'s' if len(table.measured) > 1 else ''}"
    said = [f"{first.network} has {first.mean:.2f} % on average over {sets}, by {table.protocols[0]} probes"]
    said += [_against(each, len(table.measured)) for each in others]
    missing = len(table.tasks) - len(table.measured)
    return "; ".join(said) + "." + (f" {missing} could not be had." if missing else "")


def _against(other: Summary, sets: int) -> str:
    return f"it is surely better than {other.network} ({other.mean:.2f} %) on {other.wins} and worse on {other.losses}"


def as_rows(table: TransferTable, protocol: str) -> list[list[str]]:
    """Returns the cells of one protocol's table, a line for each data set, then mean and mean rank; * is the best."""
    lines = []
    for task, values in zip(table.measured, table.values(protocol), strict=True):
        lines.append([task.name, task.metric, *_starred([f"{value:.2f}" for value in values], values)])
    found = table.summaries(protocol)
    means, ranks = np.array([each.mean for each in found]), np.array([each.rank for each in found])
    lines.append(["mean", "", *_starred([f"{value:.2f}" for value in means], means)])
    lines.append(["mean rank", "", *_starred([f"{value:.2f}" for value in ranks], -ranks)])
    return lines


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown; all cells are plain text."""
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(in_table(cell) for cell in row) + " |" for row in rows)


def _starred(cells: Sequence[str], values: np.ndarray) -> list[str]:
    best = values.max()
    several = len(cells) > 1
    return [f"{cell}*" if several and value == best else cell for cell, value in zip(cells, values, strict=True)]

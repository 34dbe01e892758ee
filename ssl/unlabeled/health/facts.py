"""Collects the facts of a run that are known before its metrics are read."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unlabeled.objective import HasMetricBounds, MetricBound, Objective, Plan


@dataclass(frozen=True)
class RunFacts:
    """The facts that the metrics of a run are compared with."""

    objective: str  # its class name
    collapsed_at: float | None  # loss of a network whose embeddings are all equal
    total_steps: int
    features: int  # of the backbone
    signs: tuple[MetricBound, ...] = ()  # of the method
    orthogonal_steps: bool = False  # optimizer=muon: every step moves a matrix in all directions alike, and so further

    def as_dict(self) -> dict[str, Any]:
        """Returns the facts as plain values."""
        return asdict(self) | {"signs": [sign._asdict() for sign in self.signs]}


def collect_facts(objective: Objective, plan: Plan, total_steps: int) -> RunFacts:
    """Returns the facts of a run."""
    name, width = type(objective).__name__, objective.backbone.num_features
    signs = tuple(objective.metric_bounds(plan)) if isinstance(objective, HasMetricBounds) else ()
    return RunFacts(name, objective.collapsed_at(plan), total_steps, width, signs)


def facts_from_dict(values: Mapping[str, Any]) -> RunFacts:
    """Reads what :meth:`RunFacts.as_dict` gave. Raises TypeError or KeyError for anything else."""
    signs = tuple(MetricBound(**sign) for sign in values["signs"])
    facts = RunFacts(**{**values, "signs": signs})
    bounds = [bound for sign in signs for bound in (sign.at_least, sign.at_most)]
    numbers = [facts.total_steps, facts.features, *bounds, 0 if facts.collapsed_at is None else facts.collapsed_at]
    texts = [facts.objective, *(text for sign in signs for text in (sign.name, sign.metric, sign.meaning, sign.remedy))]
    kinds = type(facts.orthogonal_steps) is bool and all(isinstance(text, str) for text in texts)
    if not all(map(_is_float, numbers)) or not kinds:
        raise TypeError("a value of another type")
    return facts


def _is_float(number: object) -> bool:
    """Returns whether it is a float. Bounds may be infinite; an integer may be too large for a float."""
    return type(number) is float or (type(number) is int and abs(number) <= sys.float_info.max)

"""What is known of a run before its numbers are read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unlabeled.objective import HasMetricBounds, MetricBound, Objective, Plan


@dataclass(frozen=True)
class RunFacts:
    """What the numbers of a run are compared with."""

    objective: str  # its class
    collapsed_at: float | None  # loss of a network whose embeddings are all equal
    total_steps: int
    features: int  # width of the backbone's
    signs: tuple[MetricBound, ...] = ()  # of the method

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"signs": [sign._asdict() for sign in self.signs]}


def collect_facts(objective: Objective, plan: Plan, total_steps: int) -> RunFacts:
    """Of a run."""
    name, width = type(objective).__name__, objective.backbone.num_features
    signs = tuple(objective.metric_bounds(plan)) if isinstance(objective, HasMetricBounds) else ()
    return RunFacts(name, objective.collapsed_at(plan), total_steps, width, signs)


def facts_from_dict(values: Mapping[str, Any]) -> RunFacts:
    """From what :meth:`Facts.as_dict` gave."""
    return RunFacts(**{**values, "signs": tuple(MetricBound(**sign) for sign in values["signs"])})

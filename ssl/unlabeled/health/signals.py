"""Computes the numbers that rules test, from the metrics of a step and of earlier steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unlabeled.health.facts import RunFacts

NEARLY_ONE = 1 - 1e-4  # above it, the teacher may move by less than float32 can show


@dataclass(frozen=True)
class MetricRecord:
    """The metrics logged at a step, with values from before."""

    metrics: Mapping[str, float]
    before: Mapping[str, float]  # the last value of every metric before this step
    first: Mapping[str, float]  # the first value, this record's if it is the first
    most: Mapping[str, float]  # the largest value, this record's included
    facts: RunFacts


def metric_reader(name: str) -> Callable[[MetricRecord], Mapping[str, float]]:
    return lambda record: {"": record.metrics[name]} if name in record.metrics else {}


def parts_reader(prefix: str) -> Callable[[MetricRecord], Mapping[str, float]]:
    start = f"{prefix}/"
    return lambda record: {
        name.removeprefix(start): value for name, value in record.metrics.items() if name.startswith(start)
    }


def above_collapse(record: MetricRecord) -> Mapping[str, float]:
    """Returns the loss minus its value at collapse, as a share of that value, or of 1 if it is less than 1."""
    collapsed, loss = record.facts.collapsed_at, record.metrics.get("train/loss")
    if collapsed is None or loss is None:
        return {}
    return {"": (loss - collapsed) / max(1.0, abs(collapsed))}


def above_start(record: MetricRecord) -> Mapping[str, float]:
    """Returns the same, or less if the first loss is higher: some losses fall to their collapse value (SimSiam)."""
    above = above_collapse(record)
    if not above:
        return {}
    collapsed, first = record.facts.collapsed_at or 0.0, record.first["train/loss"]
    return {"": min(above[""], (record.metrics["train/loss"] - first) / max(1.0, abs(collapsed)))}


def teacher_moves(record: MetricRecord) -> Mapping[str, float]:
    """Returns 1 if the teacher has changed since the last record, 0 if it has not although it should have."""
    name = "health/teacher_length"
    momentum = record.metrics.get("health/planned/momentum", 0.0)
    before = record.before.get("health/teacher_distance")
    if before is None or not (name in record.metrics and name in record.before and momentum < NEARLY_ONE):
        return {}
    apart = before > 0
    return {"": float(record.metrics[name] != record.before[name] or not apart)}


def teacher_apart(record: MetricRecord) -> Mapping[str, float]:
    """Returns the distance of teacher and student; only if the student moved and the teacher does not copy it."""
    moved = any(value > 0 for name, value in record.before.items() if name.startswith("health/update_ratio"))
    follows = record.metrics.get("health/planned/momentum", 1.0) > 0
    name = "health/teacher_distance"
    return {"": record.metrics[name]} if name in record.metrics and moved and follows else {}


def rank_kept(record: MetricRecord) -> Mapping[str, float]:
    """Returns the centred RankMe of the embeddings, as a share of its largest value so far."""
    name = "health/embedding_rankme_centred"
    return {"": record.metrics[name] / record.most[name]} if record.metrics.get(name) else {}


def queue_age(record: MetricRecord) -> Mapping[str, float]:
    """Returns the age of the oldest key in steps, divided by the teacher's time constant 1 / (1 − momentum)."""
    age, momentum = (record.metrics.get(f"health/planned/{name}") for name in ("queue_age", "momentum"))
    return {} if age is None or momentum is None else {"": age * (1 - momentum)}


def rank_share(record: MetricRecord) -> Mapping[str, float]:
    """Returns the centred RankMe of the backbone's features, as a share of their number."""
    rank, width = record.metrics.get("health/feature_rankme_centred"), record.facts.features
    return {} if rank is None or not width else {"": rank / width}

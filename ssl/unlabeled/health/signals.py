"""The numbers that rules are about, from what a run writes down at a step and what was there before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unlabeled.health.facts import RunFacts

NEARLY_ONE = 1 - 1e-4  # a momentum above it moves a teacher by less than float32 may show


@dataclass(frozen=True)
class MetricRecord:
    """What is written down at a step, with what was before."""

    metrics: Mapping[str, float]
    before: Mapping[str, float]  # the last value of every metric until then
    first: Mapping[str, float]  # its first, this record's where there was none
    most: Mapping[str, float]  # and its largest, this record's among them
    facts: RunFacts


def metric_reader(name: str) -> Callable[[MetricRecord], Mapping[str, float]]:
    return lambda record: {"": record.metrics[name]} if name in record.metrics else {}


def parts_reader(prefix: str) -> Callable[[MetricRecord], Mapping[str, float]]:
    start = f"{prefix}/"
    return lambda record: {
        name.removeprefix(start): value for name, value in record.metrics.items() if name.startswith(start)
    }


def above_collapse(record: MetricRecord) -> Mapping[str, float]:
    """By how much of its value at collapse, or of 1 where that is less, the loss is above that value."""
    collapsed, loss = record.facts.collapsed_at, record.metrics.get("train/loss")
    if collapsed is None or loss is None:
        return {}
    return {"": (loss - collapsed) / max(1.0, abs(collapsed))}


def above_start(record: MetricRecord) -> Mapping[str, float]:
    """The same, of its first value where that is higher: some losses fall to their value at collapse (SimSiam's)."""
    above = above_collapse(record)
    if not above:
        return {}
    collapsed, first = record.facts.collapsed_at or 0.0, record.first["train/loss"]
    return {"": min(above[""], (record.metrics["train/loss"] - first) / max(1.0, abs(collapsed)))}


def teacher_moves(record: MetricRecord) -> Mapping[str, float]:
    """1 where the teacher has changed since the last look, 0 where it has not although it should have."""
    name = "health/teacher_length"
    momentum = record.metrics.get("health/planned/momentum", 0.0)
    if not (name in record.metrics and name in record.before and momentum < NEARLY_ONE):
        return {}
    apart = record.before["health/teacher_distance"] > 0
    return {"": float(record.metrics[name] != record.before[name] or not apart)}


def teacher_apart(record: MetricRecord) -> Mapping[str, float]:
    """Distance of teacher and student, where the student has moved and the teacher does not take its weights over."""
    moved = any(value > 0 for name, value in record.before.items() if name.startswith("health/update_ratio"))
    follows = record.metrics.get("health/planned/momentum", 1.0) > 0
    name = "health/teacher_distance"
    return {"": record.metrics[name]} if name in record.metrics and moved and follows else {}


def rank_kept(record: MetricRecord) -> Mapping[str, float]:
    """Centred RankMe of the embeddings, as a share of the largest that it was."""
    name = "health/embedding_rankme_centred"
    return {"": record.metrics[name] / record.most[name]} if record.metrics.get(name) else {}


def queue_age(record: MetricRecord) -> Mapping[str, float]:
    """Age of the oldest key in steps, by the steps that the teacher takes to change: 1 / (1 − momentum)."""
    age, momentum = (record.metrics.get(f"health/planned/{name}") for name in ("queue_age", "momentum"))
    return {} if age is None or momentum is None else {"": age * (1 - momentum)}


def rank_share(record: MetricRecord) -> Mapping[str, float]:
    """Centred RankMe of the backbone's features, as a share of their number."""
    rank, width = record.metrics.get("health/feature_rankme_centred"), record.facts.features
    return {} if rank is None or not width else {"": rank / width}

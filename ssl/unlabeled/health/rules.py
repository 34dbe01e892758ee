"""Defines what is unhealthy: one rule for each failure, with its bound, its usual meaning and what to try.

The bounds were set from the runs in ``benchmarks/results/health_cpu.md``: they are between the values of healthy runs
of every method and those of failed runs, mostly a factor of ten from both.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from unlabeled.core.escaping import escaped
from unlabeled.health.facts import RunFacts
from unlabeled.health.signals import (
    MetricRecord,
    above_collapse,
    above_start,
    metric_reader,
    parts_reader,
    queue_age,
    rank_kept,
    rank_share,
    teacher_apart,
    teacher_moves,
)

Severity = Literal["alarm", "warning", "note"]

PINNED = 0.005  # share of the loss at collapse; the closest healthy method, SwAV, is 1.8 % below it after 60 steps
PINNED_STEPS = 100
PINNED_SHARE = 0.02  # share of the run, if that is more steps: a long warm-up changes little for a long time
# Steps in which a new network may look collapsed (SimCLR's embeddings spread by 3 %), and in which small weights
# (those of its projector) change by a large share of their norm.
AFTER = 25


def no_delay(facts: RunFacts) -> int:
    return 0


def pinned_steps(facts: RunFacts) -> int:
    return max(PINNED_STEPS, round(PINNED_SHARE * facts.total_steps))


@dataclass(frozen=True)
class Rule:
    """A condition on a number, or on one number of each part of the network, that must not hold.

    Args:
        name: of the finding.
        severity: ``alarm``: the run has failed; ``warning``: it may continue; ``note``: for information.
        values: returns the numbers in a record, by the part of the network; none if the record has no such number.
        holds: whether such a number is unhealthy.
        what: the sentence of the finding; ``{value}`` and ``{of}`` are filled in.
        meaning: what it usually means.
        remedy: what to try.
        turns, steps: the finding needs so many consecutive unhealthy values, and so many steps from the first to the
            last.
        after: steps at the start of the run that are ignored.
        collapse: whether the finding means collapse, at which ``health=stop`` ends the run.
    """

    name: str
    severity: Severity
    values: Callable[[MetricRecord], Mapping[str, float]]
    holds: Callable[[float, RunFacts], bool]
    what: str
    meaning: str
    remedy: str
    turns: int = 1
    steps: Callable[[RunFacts], int] = no_delay
    after: int = 0
    collapse: bool = False


RULES = (
    Rule(
        "images-are-equal",
        "alarm",
        metric_reader("health/image_difference"),
        lambda v, facts: v < 0.008,  # two of 255 grey values; CIFAR-10 has 0.24
        "all images of a batch are the same (they differ by {value:.4f} of white)",
        "the data set or its decoding gives one image over and over",
        "look at the images with preview=8 and at the source with unlabeled inspect",
    ),
    Rule(
        "images-are-flat",
        "alarm",
        metric_reader("health/pixel_variation"),
        lambda v, facts: v < 0.008,
        "images have one colour and nothing on them (pixels vary by {value:.4f} of white)",
        "files are blank, or values were scaled to 0…1 before they were stored as whole numbers",
        "look at the images with preview=8 and at the source with unlabeled inspect",
    ),
    Rule(
        "not-shuffled",
        "alarm",
        metric_reader("health/neighbours"),
        lambda v, facts: v > 0.5,
        "{value:.0%} of the images follow in the batch as they do in the source",
        "the order of samples is that of the files, which are often sorted by class or by scene",
        "draw a new permutation in each epoch",
    ),
    Rule(
        "gradient-reaches-targets",
        "alarm",
        metric_reader("health/target_gradient"),
        lambda v, facts: v > 0,
        "what the embeddings are compared with carries a gradient",
        "the stop-gradient is missing: both sides can agree by becoming constant",
        "compute the targets under torch.no_grad() and detach them",
    ),
    Rule(
        "embeddings-not-normalised",
        "alarm",
        metric_reader("health/radial_gradient"),
        lambda v, facts: v > 0.02,  # 0.0001 for unit rows, from bfloat16
        "the loss depends on the length of the embeddings (cosine of an embedding and its gradient {value:.3f})",
        "they are not set to length 1, so that the loss can fall by making them longer",
        "normalise the embeddings before they are compared",
    ),
    Rule(
        "teacher-is-frozen",
        "alarm",
        teacher_moves,
        lambda v, facts: v == 0,
        "the teacher has not changed at all",
        "its update is not called, or its momentum is 1",
        "check objective.momentum and that after_step runs",
    ),
    Rule(
        "teacher-is-the-student",
        "alarm",
        teacher_apart,
        lambda v, facts: v == 0,
        "the teacher's weights are the student's",
        "both are one module, or one update sets them both",
        "make the teacher a copy, and let only its moving average write to it",
    ),
    Rule(
        "no-gradient",
        "alarm",
        parts_reader("health/gradient_norm"),
        lambda v, facts: v == 0,
        "no gradient reaches {of}",
        "it is cut off from the loss, or everything behind it is constant",
        "look for a detach, a ReLU that is always 0 or embeddings that are all equal",
        turns=2,
        after=AFTER,
    ),
    Rule(
        "embeddings-collapsed",
        "alarm",
        metric_reader("health/embedding_std"),
        lambda v, facts: v < 0.1,  # healthy: 0.34 (SwAV) to 1
        "the embeddings of different images are nearly equal (their spread is {value:.3f} of an even one's)",
        "the network has collapsed to one answer",
        "check stop-gradient, predictor and the teacher's momentum, and lower optimizer.lr",
        turns=2,
        after=AFTER,
        collapse=True,
    ),
    Rule(
        "features-collapsed",
        "alarm",
        metric_reader("health/feature_std"),
        lambda v, facts: v < 0.05,  # healthy: 0.28 to 0.6
        "the backbone gives different images nearly equal features (their spread is {value:.3f} of an even one's)",
        "the network has collapsed to one answer, or its inputs say nothing",
        "check the views with preview=8, stop-gradient and predictor, and lower optimizer.lr",
        after=AFTER,
        collapse=True,
    ),
    Rule(
        "features-not-finite",
        "alarm",
        metric_reader("health/features_finite"),
        lambda v, facts: v == 0,
        "features of the probe set are not finite",
        "the network has diverged, or 16-mixed overflows",
        "a tenth of optimizer.lr, or trainer.precision=32-true",
        collapse=True,
    ),
    Rule(
        "rank-collapsed",
        "alarm",
        rank_share,
        lambda v, facts: v < 0.04,  # healthy: 0.15 (MAE) to 0.5
        "the backbone's features use {value:.1%} of their dimensions (centred RankMe)",
        "dimensional collapse: views are too weak or the learning rate too high",
        "stronger views, a lower optimizer.lr, or a wider projector",
        after=AFTER,
        collapse=True,
    ),
    Rule(
        "rank-falls",
        "alarm",
        rank_kept,
        lambda v, facts: v < 0.2,  # healthy: 0.5 (SwAV) to 1; SimSiam without predictor: 0.1
        "the embeddings use {value:.0%} of the dimensions that they used before (centred RankMe)",
        "the network is collapsing, though its loss may look well",
        "check stop-gradient, predictor and the teacher's momentum, and lower optimizer.lr",
        after=AFTER,
    ),
    Rule(
        "loss-at-collapse",
        "alarm",
        above_collapse,
        lambda v, facts: abs(v) <= PINNED,
        "the loss stands at the value of a network whose embeddings are all equal",
        "nothing is learned: the task is too hard at the start, or outputs are uniform",
        "a lower objective.temperature or epsilon, weaker views, and a look at optimizer.lr and its warm-up",
        turns=3,
        steps=pinned_steps,
        collapse=True,
    ),
    Rule(
        "loss-diverges",
        "alarm",
        above_start,
        lambda v, facts: v > PINNED,
        "the loss is {value:.0%} above where it began and above that of a network whose embeddings are all equal",
        "it diverges: the learning rate is too high, or embeddings are not normalised",
        "a tenth of optimizer.lr, or a longer warm-up",
        turns=3,
        steps=pinned_steps,
    ),
    Rule(
        "update-too-large",
        "alarm",
        parts_reader("health/update_ratio"),
        lambda v, facts: v > 0.1,  # healthy: 0.0005 to 0.025
        "a step changes the weights of {of} by {value:.0%} of their length",
        "the learning rate is far too high",
        "a tenth of optimizer.lr, or a longer warm-up",
        turns=2,
        after=AFTER,
    ),
    Rule(
        "learning-rate-high",
        "warning",
        metric_reader("health/update_ratio/backbone"),
        # healthy: 0.001 to 0.022 (SwAV), with Muon 0.06 (SimCLR, rate 0.05); thirty times the rate: 0.032 to 0.2
        lambda v, facts: v > (0.1 if facts.orthogonal_steps else 0.03),
        "a step changes the backbone's weights by {value:.1%} of their length",
        "the learning rate is too high for what is left of the run to average out",
        "a third of optimizer.lr, and see whether loss and probe are better after an epoch",
        after=AFTER,
    ),
    Rule(
        "queue-too-old",
        "note",
        queue_age,
        lambda v, facts: v > 1,  # MoCo: 0.26; its momentum of 0.99 has 2.6, and 1.2 points less (arXiv:1911.05722)
        "the teacher has changed {value:.1f} times over since the oldest key of the queue",
        "keys of the queue are made by networks too different from one another",
        "a shorter objective.queue_size, or an objective.momentum nearer to 1",
        turns=2,
    ),
    Rule(
        "steps-skipped",
        "warning",
        metric_reader("train/skipped_steps"),
        lambda v, facts: v > 0,
        "{value:.0f} steps were skipped because a loss or gradient was not finite",
        "numbers overflow: a learning rate that is too high, or 16 bits",
        "python train.py replay=… names the first bad tensor; a lower optimizer.lr, or trainer.precision=32-true",
    ),
    Rule(
        "waiting-for-data",
        "warning",
        metric_reader("health/data_wait"),
        lambda v, facts: v > 0.3,
        "{value:.0%} of the time is spent waiting for data",
        "reading or decoding is slower than the network",
        "more num_workers, more memory_gib, or unlabeled inspect for its speed",
        turns=2,
        after=AFTER,
    ),
)


def _as_it_is(name: str) -> str:
    """Returns a name from a file for a sentence that is formatted: nothing in it is a field or a control character."""
    return escaped(name).replace("{", "{{").replace("}", "}}")


def rules_for(facts: RunFacts) -> Iterator[Rule]:
    """Yields the rules of every method, then those that the method itself declares."""
    yield from RULES
    for sign in facts.signs:
        low, high = sign.at_least, sign.at_most
        yield Rule(
            sign.name,
            "alarm",
            metric_reader(f"train/{sign.metric}"),
            lambda v, facts, low=low, high=high: math.isfinite(v) and not low <= v <= high,  # type: ignore[misc]
            f"{_as_it_is(sign.metric.replace('_', ' '))} {{value:.3g}}, healthy are {low:g} to {high:g}",
            sign.meaning,
            sign.remedy,
            turns=3,
            steps=pinned_steps if sign.lasting else no_delay,
            collapse=True,
        )

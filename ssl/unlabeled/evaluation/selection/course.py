"""Active learning on frozen features: ask for labels, fit the linear probe, ask for more."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from unlabeled.evaluation.features import Features, concatenate
from unlabeled.evaluation.selection.classifier import LabelClassifier
from unlabeled.evaluation.selection.nearest import Ints, unit
from unlabeled.evaluation.selection.oracle import Oracle
from unlabeled.evaluation.selection.strategies import BEGIN_AT_RANDOM, NEED_LABELS, RANDOM, Candidates, choose


@dataclass(frozen=True)
class Schedule:
    """How many labels each round has: ``start``, then ``step`` more in each further one."""

    start: int
    step: int
    rounds: int

    @property
    def counts(self) -> list[int]:
        """Returns the number of labels of each round."""
        return [self.start + self.step * number for number in range(self.rounds)]


@dataclass(frozen=True)
class Course:
    """What came of one strategy with one seed."""

    strategy: str
    seed: int
    counts: list[int]  # labels of each round
    top1: list[float] = field(default_factory=list)  # of each round, per cent of the test images
    c: list[float] = field(default_factory=list)  # of the probe of each round
    asked: list[int] = field(default_factory=list)  # rows of the pool in the order in which they were asked for


def run_course(
    strategy: str,
    pool: Features,
    test: Features,
    num_classes: int,
    classifier: LabelClassifier,
    schedule: Schedule,
    seed: int,
    oracle: Oracle | None = None,
) -> Course:
    """Runs the loop once: each round fits the probe on the labels so far and tells its accuracy on ``test``.

    The first images are drawn at random, by ``seed``, for strategies of ``BEGIN_AT_RANDOM``; typical chooses its own.

    Args:
        strategy: a name of ``STRATEGIES``.
        pool: features of the images to choose among; nobody but the oracle reads their labels.
        test: features of the test images; their labels give the accuracy and decide nothing.
        num_classes: all that there are.
        classifier: fitted in each round.
        schedule: of the labels.
        seed: of every random draw.
        oracle: tells the labels of the pool; None: one of ``pool.labels``.
    """
    oracle = oracle or Oracle(pool.labels)
    pool = replace(pool, labels=torch.full_like(pool.labels, -1))  # nothing below can see one
    labelled, course = pool.rows(torch.zeros(0, dtype=torch.long)), Course(strategy, seed, schedule.counts)
    for count in schedule.counts:
        by = RANDOM if strategy in BEGIN_AT_RANDOM and not course.asked else strategy
        c = course.c[-1] if course.c else None
        new = next_rows(by, pool, labelled, course.asked, count - len(course.asked), classifier, seed, c)
        told = oracle.ask(new.tolist())
        labelled = concatenate([labelled, replace(pool.rows(torch.from_numpy(new)), labels=told)])
        score = classifier.score(labelled, test, num_classes)
        course.asked.extend(new.tolist())
        course.top1.append(score.top1)
        course.c.append(float(score.chosen["C"]))
    return course


def next_rows(
    strategy: str,
    pool: Features,
    labelled: Features,
    rows: list[int],
    count: int,
    classifier: LabelClassifier,
    seed: int,
    c: float | None = None,
) -> Ints:
    """Returns the ``count`` rows of the pool to label next, int64, the most wanted first.

    Args:
        strategy: a name of ``STRATEGIES``.
        pool: features of all images; their labels are not read.
        labelled: features and labels of those whose label is known.
        rows: where these stand in the pool.
        count: at most as many as have no label.
        classifier: asked by strategies of ``NEED_LABELS``.
        seed: of random draws and of k-means.
        c: of the classifier; None: chosen on a part of the labels.

    Raises:
        UserError: fewer images than ``count`` are left.
    """
    candidates = Candidates(unit(pool.x.cpu().numpy()), np.array(rows, np.int64), None, seed)
    if strategy in NEED_LABELS:
        left: Tensor = pool.x[torch.from_numpy(candidates.unlabelled)]
        c = classifier.choose_c(labelled) if c is None else c
        candidates = replace(candidates, pool=classifier.pool(labelled, left, c))
    return choose(strategy, candidates, count)

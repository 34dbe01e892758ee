"""What a strategy saves against random labels: intervals over seeds, and the labels not needed."""

from collections.abc import Sequence
from dataclasses import dataclass

from unlabeled.evaluation.selection.course import Course
from unlabeled.evaluation.statistics import SeedStatistics, mean_over_seeds


@dataclass(frozen=True)
class Savings:
    """One strategy beside random, over the same seeds."""

    strategy: str
    top1: list[SeedStatistics]  # of each round
    gain: SeedStatistics  # top-1 minus random's, mean over the rounds, paired by seed
    last_gain: SeedStatistics  # the same of the last round
    saved: SeedStatistics  # labels not needed for the last accuracy that both have, paired by seed


def savings(courses: Sequence[Course], random: Sequence[Course]) -> Savings:
    """Compares the courses of one strategy with those of random labels, seed by seed.

    Raises:
        ValueError: other seeds, or other numbers of labels.
    """
    if [(each.seed, each.counts) for each in courses] != [(each.seed, each.counts) for each in random]:
        raise ValueError("courses of other seeds or other numbers of labels")
    gains = [
        [a - b for a, b in zip(ours.top1, theirs.top1, strict=True)]
        for ours, theirs in zip(courses, random, strict=True)
    ]
    return Savings(
        courses[0].strategy,
        [mean_over_seeds(values) for values in zip(*(each.top1 for each in courses), strict=True)],
        mean_over_seeds([sum(each) / len(each) for each in gains]),
        mean_over_seeds([each[-1] for each in gains]),
        mean_over_seeds([labels_saved(*pair) for pair in zip(courses, random, strict=True)]),
    )


def labels_saved(course: Course, random: Course) -> float:
    """Returns how many labels fewer than random the course needs for the lower of their last accuracies.

    Exchanging the two changes the sign, and equal courses save nothing.
    """
    both = min(course.top1[-1], random.top1[-1])
    return labels_needed(random, both) - labels_needed(course, both)


def labels_needed(course: Course, accuracy: float) -> float:
    """Returns the number of labels from which on the accuracy stays at or above a value, linear between rounds.

    The first crossing would be earlier wherever one round is lucky. ``accuracy`` is at most that of the last round.
    """
    for place in range(len(course.counts) - 1, 0, -1):
        low, high = course.top1[place - 1], course.top1[place]
        if low < accuracy:
            share = (accuracy - low) / (high - low)
            return course.counts[place - 1] + share * (course.counts[place] - course.counts[place - 1])
    return float(course.counts[0])

"""Statistics of accuracies: intervals, tests of two of them, several seeds, several tests.

All accuracies and differences are in per cent; all intervals are of 95 % and two-sided. No function uses a
global random state, and the same input gives the same output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Right = NDArray[np.bool_]  # [N], whether each test image was classified rightly

TAILS = (0.025, 0.975)
RESAMPLES = 10_000  # of the paired bootstrap: they fix the ends of an interval to about 1 % of its width
FEW = 6  # images that two differ on, from which on McNemar's p can be below 5 %


@dataclass
class Difference:
    """A − B in points, its interval, and the p of the hypothesis that there is no difference."""

    points: float
    interval: Interval
    p: float | None  # None: no test is possible, the deviations are zero
    only_a: int | None = None  # test images that A alone has right; None for a test over seeds
    only_b: int | None = None


@dataclass
class SeedStatistics:
    """Statistics of several numbers that differ only in a seed."""

    mean: float
    deviation: float | None  # of the sample, with n − 1; None for one number
    interval: Interval | None  # of the mean, by Student's t; None for one number
    n: int


def accuracy_interval(correct: int, n: int) -> Interval:
    """Returns the BCa bootstrap interval of an accuracy, over resamples of the ``n`` test images.

    The number of right answers in a resample is binomial, so the limit of infinitely many resamples is exact and costs
    no draws (Efron 1987, Better bootstrap confidence intervals, JASA 82; equation 2.3 with the skewness of 0 and 1).
    If all answers are right, or none, a bootstrap has no spread: then it is Clopper and Pearson's exact interval.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} of {n} right answers")
    p = correct / n
    if correct == 0:
        return 0.0, 100 * float(_stats().beta.ppf(TAILS[1], 1, n))
    if correct == n:
        return 100 * float(_stats().beta.ppf(TAILS[0], n, 1)), 100.0
    below = _stats().binom.cdf(correct, n, p) - _stats().binom.pmf(correct, n, p) / 2
    skewness = (1 - 2 * p) / math.sqrt(n * p * (1 - p))
    low, high = (100 * float(_stats().binom.ppf(level, n, p)) / n for level in _bca_levels(below, skewness))
    return low, high


def share_bound(count: int, n: int, unsure: float) -> float:
    """Returns a share, from 0 to 1, that the true one exceeds with this probability, by Clopper and Pearson (1934)."""
    return 1.0 if count == n else float(_stats().beta.ppf(1 - unsure, count + 1, n - count))


def draws_interval(draws: Sequence[float], n: int) -> Interval:
    """Returns the interval of the mean accuracy over draws (of labels, of seeds), all on the same ``n`` test images.

    It adds two variances: that of the draws' mean, and the binomial one of the test images, as if all draws were wrong
    on the same images, which is its largest possible value. Student's t with Welch and Satterthwaite's degrees of
    freedom. At most 0 to 100.
    """
    mean = sum(draws) / len(draws)
    images = mean * (100 - mean) / n
    if len(draws) == 1:
        return accuracy_interval(round(mean * n / 100), n)
    between = float(np.var(draws, ddof=1)) / len(draws)
    if between == 0:
        return accuracy_interval(round(mean * n / 100), n)
    freedom = (between + images) ** 2 / (between**2 / (len(draws) - 1))
    half = float(_stats().t.ppf(TAILS[1], freedom)) * math.sqrt(between + images)
    return max(0.0, mean - half), min(100.0, mean + half)


def paired_difference(a: Right, b: Right, seed: int = 0) -> Difference:
    """Returns the accuracy of A minus that of B on the same test images.

    The interval is BCa over resamples of images, which keep both answers to an image together: the numbers of images
    that A alone, B alone, both or neither have right are multinomial. The p is McNemar's exact one. If both are right
    on the same images, the interval is Clopper and Pearson's upper end for a disagreement, on either side; if they
    differ on fewer than six images or on all, always to one side, it is exact too: a bootstrap sees no other side.
    """
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"answers to other images: {a.shape} and {b.shape}")
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    p = mcnemar_test(only_a, only_b)
    if only_a + only_b == 0:
        most = accuracy_interval(0, n)[1]
        return Difference(0.0, (-most, most), p, 0, 0)
    if not (only_a and only_b) and (only_a + only_b < FEW or only_a + only_b == n):
        near, far = _of_one_side(only_a or only_b, n)
        interval = (near, far) if only_a else (-far, -near)
        return Difference(100 * (only_a - only_b) / n, interval, p, only_a, only_b)
    shares = [only_a / n, only_b / n, (n - only_a - only_b) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, RESAMPLES)
    resampled = (counts[:, 0] - counts[:, 1]) / n
    observed = (only_a - only_b) / n
    below = (np.sum(resampled < observed) + np.sum(resampled == observed) / 2) / RESAMPLES
    levels = _bca_levels(below, _skewness_of_mean(only_a, only_b, n))
    low, high = 100 * np.quantile(resampled, levels, method="inverted_cdf")
    return Difference(100 * observed, (float(low), float(high)), p, only_a, only_b)


def _of_one_side(alone: int, n: int) -> tuple[float, float]:
    """Returns the interval where one alone is right on ``alone`` of ``n`` images, and the other alone on none.

    The near end is below 0 exactly where McNemar's p is above 5 %: it takes the share of differences that are the
    one's, Clopper and Pearson's lower end of ``alone`` of ``alone``. The far end is theirs of ``alone`` of ``n``.
    """
    least = accuracy_interval(alone, alone)[0] / 100
    return 100 * alone / n * (2 * least - 1), accuracy_interval(alone, n)[1]


def mcnemar_test(only_a: int, only_b: int) -> float:
    """Returns the two-sided exact p that A alone and B alone are right equally often (McNemar 1947, as a sign test)."""
    return float(_stats().binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def mean_over_seeds(values: Sequence[float]) -> SeedStatistics:
    """Returns mean, sample deviation and t-interval of the mean; it says nothing of other test images."""
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return SeedStatistics(mean, None, None, 1)
    deviation = float(np.std(values, ddof=1))
    half = float(_stats().t.ppf(TAILS[1], n - 1)) * deviation / math.sqrt(n)
    return SeedStatistics(mean, deviation, (mean - half, mean + half), n)


def welch_test(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Returns the mean of A minus that of B, two or more seeds each: Welch's t-test (unequal deviations, unpaired)."""
    points = sum(a) / len(a) - sum(b) / len(b)
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return Difference(points, (points, points), None)
    found: Any = _stats().ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(TAILS[1] - TAILS[0])
    return Difference(points, (float(interval.low), float(interval.high)), float(found.pvalue))


def paired_draws_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Returns the mean of A minus that of B over two or more draws that both had: Student's paired t-test."""
    found = mean_over_seeds([float(value) for value in np.subtract(a, b)])
    assert found.interval is not None
    return Difference(found.mean, found.interval, paired_draws_test(a, b))


def paired_draws_test(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns the two-sided p of Student's paired t-test of two or more draws; None where all differences are equal."""
    if len(a) < 2 or np.ptp(np.subtract(a, b)) == 0:
        return None
    return float(_stats().ttest_rel(a, b).pvalue)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Corrects each p for the number of tests made (Holm 1979): compare with 0.05 as if it were the only one."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _bca_levels(below: float, skewness: float) -> list[float]:
    """Returns the quantiles of the resamples that bound the interval.

    ``below``: share of resamples below the observed value, half of those equal to it; the bias correction comes from
    it. ``skewness`` of the mean, a sixth of which is the acceleration.
    """
    bias, acceleration = float(_stats().norm.ppf(below)), skewness / 6
    ends = [bias + float(_stats().norm.ppf(tail)) for tail in TAILS]
    return [float(_stats().norm.cdf(bias + end / (1 - acceleration * end))) for end in ends]


def _skewness_of_mean(only_a: int, only_b: int, n: int) -> float:
    """Returns the skewness of the mean of n values, only_a of them 1, only_b −1, others 0; 0 where all are equal."""
    mean, square = (only_a - only_b) / n, (only_a + only_b) / n
    variance = square - mean**2
    third = mean - 3 * mean * square + 2 * mean**3  # E x³ is the mean
    return third / variance**1.5 / math.sqrt(n) if variance > 0 else 0.0


def _stats() -> Any:
    from scipy import stats  # type: ignore[import-untyped]

    return stats

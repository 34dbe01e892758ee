import itertools
import math
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from unlabeled.evaluation.statistics import (
    Right,
    accuracy_interval,
    draws_interval,
    holm_correction,
    mcnemar_test,
    mean_over_seeds,
    paired_difference,
    paired_draws_difference,
    welch_test,
)


def share(flags: Right) -> float:
    return float(flags.mean())


@pytest.mark.parametrize(("n", "p"), [(10_000, 0.9), (1000, 0.9), (1000, 0.5), (500, 0.1)])
def test_the_interval_of_an_accuracy_holds_the_truth_in_95_of_100_test_sets(n: int, p: float) -> None:
    counts = Counter(np.random.default_rng(0).binomial(n, p, 5000).tolist())
    held = 0
    for correct, times in counts.items():
        low, high = accuracy_interval(correct, n)
        held += times * (low <= 100 * p <= high)
    assert 0.94 <= held / 5000 <= 0.97


@pytest.mark.parametrize(("correct", "n"), [(90, 100), (137, 500), (9123, 10_000)])
def test_the_interval_of_an_accuracy_is_scipys_bca_bootstrap(correct: int, n: int) -> None:
    right = np.arange(n) < correct
    found = stats.bootstrap((right,), np.mean, n_resamples=20_000, batch=500, method="BCa", rng=0).confidence_interval
    low, high = accuracy_interval(correct, n)
    step = 100 / n  # what one image is worth; scipy's ends are draws
    assert low == pytest.approx(100 * found.low, abs=1.5 * step + 0.02)
    assert high == pytest.approx(100 * found.high, abs=1.5 * step + 0.02)


def test_the_interval_around_50_percent_is_symmetric_and_that_of_the_normal_law() -> None:
    low, high = accuracy_interval(5000, 10_000)
    assert low + high == pytest.approx(100, abs=0.011)
    assert high - 50 == pytest.approx(1.959964 * 100 * math.sqrt(0.25 / 10_000), abs=0.011)


def test_where_all_answers_are_right_the_interval_is_clopper_and_pearsons_and_not_a_point() -> None:
    assert accuracy_interval(20, 20) == pytest.approx((100 * 0.025 ** (1 / 20), 100))
    assert accuracy_interval(0, 20) == pytest.approx((0, 100 * (1 - 0.025 ** (1 / 20))))
    exact = stats.binomtest(20, 20).proportion_ci(0.95)
    assert accuracy_interval(20, 20)[0] == pytest.approx(100 * exact.low)


@pytest.mark.parametrize(("correct", "n"), [(5, 4), (-1, 4), (0, 0)])
def test_an_impossible_number_of_right_answers_is_refused(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} of {n}"):
        accuracy_interval(correct, n)


def test_ten_thousand_images_take_less_than_a_tenth_of_a_second() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(10_000) < 0.91, rng.random(10_000) < 0.9
    accuracy_interval(1, 2)  # scipy is imported
    started = time.perf_counter()
    accuracy_interval(int(a.sum()), 10_000)
    paired_difference(a, b)
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (10, 3), (40, 60), (7, 7)])
def test_mcnemars_p_is_the_sum_of_the_tails_of_a_fair_coin(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar_test(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_test(only_a, only_b) == mcnemar_test(only_b, only_a)


def correlated(rng: np.random.Generator, n: int, only_a: float, only_b: float) -> tuple[Right, Right]:
    """Answers of which these shares are right for one alone; 70 % are right for both."""
    draw = rng.random(n)
    both = draw < 0.7
    return both | ((draw >= 0.7) & (draw < 0.7 + only_a)), both | ((draw >= 0.8) & (draw < 0.8 + only_b))


def test_the_paired_interval_holds_the_true_difference_in_95_of_100_test_sets() -> None:
    rng = np.random.default_rng(0)
    intervals: dict[tuple[int, int], tuple[float, float]] = {}  # by what each alone has right, which comes many times
    held = []
    for _ in range(2000):
        a, b = correlated(rng, 500, 0.06, 0.03)
        alone = int((a & ~b).sum()), int((b & ~a).sum())
        if alone not in intervals:
            intervals[alone] = paired_difference(a, b).interval
        low, high = intervals[alone]
        held.append(low <= 3.0 <= high)
    assert 0.93 <= share(np.array(held)) <= 0.97


def test_without_a_difference_mcnemars_p_is_below_5_percent_in_at_most_5_of_100_test_sets() -> None:
    rng = np.random.default_rng(1)
    answers = (correlated(rng, 500, 0.05, 0.05) for _ in range(2000))
    p = [mcnemar_test(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in answers]
    assert 0.02 <= share(np.array(p) < 0.05) <= 0.05


def test_the_paired_interval_is_scipys_bca_bootstrap_of_the_differences() -> None:
    a, b = correlated(np.random.default_rng(2), 800, 0.08, 0.02)
    found = paired_difference(a, b)
    values = a.astype(float) - b.astype(float)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, batch=500, method="BCa", rng=0).confidence_interval
    assert found.points == pytest.approx(100 * values.mean())
    assert found.interval == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=0.2)  # an image is 0.125
    assert (found.only_a, found.only_b) == (int((values == 1).sum()), int((values == -1).sum()))


def test_the_paired_interval_is_narrower_than_the_two_intervals_and_turns_with_its_sign() -> None:
    a, b = correlated(np.random.default_rng(3), 2000, 0.03, 0.01)
    low, high = paired_difference(a, b).interval
    alone = accuracy_interval(int(a.sum()), 2000)
    assert high - low < (alone[1] - alone[0]) / 1.5
    assert paired_difference(b, a).interval == pytest.approx((-high, -low), abs=0.1)
    assert paired_difference(a, b) == paired_difference(a, b)


def test_two_runs_that_are_right_on_the_same_images_may_still_differ_on_others() -> None:
    a = np.arange(100) < 80
    found = paired_difference(a, a)
    assert (found.points, found.p) == (0.0, 1.0)
    assert found.interval == pytest.approx((-100 * (1 - 0.025**0.01), 100 * (1 - 0.025**0.01)))


def test_answers_to_another_number_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="other images"):
        paired_difference(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


def test_over_seeds_the_interval_is_students() -> None:
    found = mean_over_seeds([90.0, 91.0, 92.5])
    assert found.mean == pytest.approx(91.1666667)
    assert found.deviation == pytest.approx(math.sqrt(((7 / 6) ** 2 + (1 / 6) ** 2 + (4 / 3) ** 2) / 2))
    assert found.interval is not None
    assert found.deviation is not None
    half = 4.302653 * found.deviation / math.sqrt(3)  # t of 2 degrees of freedom, from its table
    assert found.interval == pytest.approx((found.mean - half, found.mean + half))
    alone = mean_over_seeds([90.0])
    assert (alone.mean, alone.deviation, alone.interval, alone.n) == (90.0, None, None, 1)


def test_welchs_test_is_its_closed_form() -> None:
    a, b = [90.0, 91.0, 92.0], [88.0, 88.5, 90.5, 89.0]
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    found = welch_test(a, b)
    assert found.points == pytest.approx(2.0)
    assert found.p == pytest.approx(2 * stats.t.sf(t, freedom))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert (found.only_a, found.only_b) == (None, None)


def test_seeds_without_any_deviation_give_no_test() -> None:
    assert welch_test([90.0, 90.0], [89.0, 89.0]).p is None


def test_holms_p_are_those_of_all_its_steps() -> None:
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm_correction([0.02]) == [0.02]
    assert holm_correction([]) == []
    for order in itertools.permutations([0.001, 0.02, 0.03, 0.2]):
        expected = {0.001: 0.004, 0.02: 0.06, 0.03: 0.06, 0.2: 0.2}
        assert holm_correction(order) == pytest.approx([expected[p] for p in order])


def simulated(draws: int, deviation: float, n: int) -> Callable[[np.random.Generator], list[float]]:
    """Accuracies of draws of labels around 80 % on the same images, as far as images and draws are independent."""

    def one(rng: np.random.Generator) -> list[float]:
        difficulty = rng.random(n)
        levels = 0.8 + deviation * rng.standard_normal(draws)
        return [100 * share(difficulty < level) for level in levels]

    return one


@pytest.mark.parametrize(("draws", "deviation"), [(3, 0.0), (3, 0.02), (5, 0.005), (10, 0.05)])
def test_the_interval_over_draws_of_labels_counts_the_draws_and_the_test_images(draws: int, deviation: float) -> None:
    rng, one = np.random.default_rng(0), simulated(draws, deviation, 1000)
    held = []
    for _ in range(2000):
        low, high = draws_interval(one(rng), 1000)
        held.append(low <= 80 <= high)
    assert 0.93 <= share(np.array(held)) <= 0.98


def test_the_interval_over_draws_ends_at_0_and_100_and_is_never_a_point() -> None:
    assert draws_interval([99.0, 100.0, 98.0], 100)[1] == 100
    assert draws_interval([1.0, 0.0], 100)[0] == 0
    assert draws_interval([90.0, 90.0], 100) == accuracy_interval(90, 100) == draws_interval([90.0], 100)


def test_however_few_the_images_an_interval_is_finite_and_holds_what_was_seen() -> None:
    for n in (1, 2, 3, 5, 12, 30):
        for correct in range(n + 1):
            low, high = accuracy_interval(correct, n)
            assert 0 <= low <= 100 * correct / n <= high <= 100
    for n in (1, 2, 3, 8):
        for only_a, only_b in itertools.product(range(n + 1), repeat=2):
            if only_a + only_b <= n:
                order = np.arange(n)
                found = paired_difference(order < only_a, (order >= only_a) & (order < only_a + only_b))
                low, high = found.interval
                assert -100 <= low <= found.points <= high <= 100
                assert found.points == pytest.approx(100 * (only_a - only_b) / n)


@pytest.mark.parametrize("alone", range(1, 6))
def test_of_fewer_differences_than_mcnemars_p_can_tell_the_interval_holds_0(alone: int) -> None:
    a, none = np.arange(1000) < alone, np.zeros(1000, dtype=bool)
    found = paired_difference(a, none)
    low, high = found.interval
    assert found.p is not None
    assert low < 0
    assert found.p > 0.05
    share = 0.025 ** (1 / alone)  # Clopper and Pearson's lower end of all of ``alone``
    assert (low, high) == pytest.approx((alone / 10 * (2 * share - 1), accuracy_interval(alone, 1000)[1]))
    assert paired_difference(none, a).interval == (-high, -low)
    whole = np.ones(10, dtype=bool)
    low, high = paired_difference(whole, ~whole).interval
    assert low < 40 < high


def test_draws_that_both_had_are_compared_in_pairs() -> None:
    a, b = [50.2, 55.9, 61.1], [49.1, 54.9, 59.9]
    found, pairs = paired_draws_difference(a, b), stats.ttest_rel(a, b)
    assert found.points == pytest.approx(1.1)
    assert found.p == pytest.approx(pairs.pvalue)
    assert found.interval == pytest.approx(tuple(pairs.confidence_interval(0.95)))

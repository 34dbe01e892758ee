"""The warm-up and the cosine in closed form."""

import math

import pytest

from unlabeled.optimizers.schedules import warmup_cosine


@pytest.mark.parametrize(
    ("step", "warmup", "total", "factor"),
    [
        (0, 100, 1000, 0.0),
        (25, 100, 1000, 0.25),
        (100, 100, 1000, 1.0),
        (550, 100, 1000, 0.5),
        (325, 100, 1000, 0.5 * (1 + math.sqrt(0.5))),
        (1000, 100, 1000, 0.0),
        (2000, 100, 1000, 0.0),  # past the end
        (0, 0, 1000, 1.0),
        (500, 0, 1000, 0.5),
        (0, 0, 1, 1.0),
        (0, 5, 1, 0.0),
        (1, 2.5, 10, 0.4),
        (0.5, 0, 1, 0.5),
    ],
)
def test_factors_in_closed_form(step: float, warmup: float, total: int, factor: float) -> None:
    assert warmup_cosine(step, warmup, total) == pytest.approx(factor, abs=1e-12)


def test_a_warm_up_longer_than_the_run_ends_with_the_run() -> None:
    assert [warmup_cosine(step, 50, 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_the_factor_rises_then_falls_and_never_leaves_zero_to_one() -> None:
    factors = [warmup_cosine(step, 30, 200) for step in range(201)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[:31] == sorted(factors[:31])
    assert factors[30:] == sorted(factors[30:], reverse=True)

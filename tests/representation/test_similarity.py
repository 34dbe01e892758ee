import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.representation import similarity
from unlabeled.representation.similarity import alignment, uniformity


def unit(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def squared(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("power", [1, 2, 3])
def test_alignment_equals_a_loop_over_pairs_whatever_the_lengths_of_rows(power: float) -> None:
    x, y = unit(40, 6), unit(40, 6, 1)
    expected = sum(squared(a, b) ** (power / 2) for a, b in zip(x.tolist(), y.tolist(), strict=True)) / 40
    assert alignment(7 * x, 0.2 * y, power) == pytest.approx(expected, rel=1e-12)


def test_alignment_is_zero_of_equal_and_four_of_opposite_embeddings() -> None:
    assert alignment(unit(9, 5), unit(9, 5)) == 0
    assert alignment(unit(9, 5), -unit(9, 5)) == pytest.approx(4)


@pytest.mark.parametrize("t", [0.5, 2, 500])
def test_uniformity_equals_a_loop_over_pairs_in_pieces_of_any_size(t: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit(50, 7).tolist()
    exponents = [-t * squared(rows[i], rows[j]) for i in range(50) for j in range(i + 1, 50)]
    top = max(exponents)
    expected = top + math.log(sum(math.exp(each - top) for each in exponents) / len(exponents))
    for pairs in (2**22, 700, 60, 1):
        monkeypatch.setattr(similarity, "PAIRS", pairs)
        assert uniformity(3 * unit(50, 7), t) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dim", [64, 128, 512])
def test_uniformity_of_an_isotropic_cloud_is_minus_four_and_eight_over_d(dim: int) -> None:
    assert uniformity(unit(2000, dim)) == pytest.approx(-4 + 8 / dim, abs=0.004)


def test_uniformity_of_equal_rows_is_zero_and_of_one_row_refused() -> None:
    assert uniformity(torch.ones(30, 8)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="two rows"):
        uniformity(torch.ones(1, 8))

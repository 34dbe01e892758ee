import itertools

import pytest
import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.representation.cka import CKA, cka


def gaussian(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic_by_loop(x: Tensor, y: Tensor) -> float:
    """The U-statistic of Song et al. 2012, equation 4: over all tuples of four different images."""
    k, l, n = (x @ x.T).tolist(), (y @ y.T).tolist(), len(x)  # noqa: E741
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i][j] * (l[i][j] + l[q][r] - 2 * l[i][q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def biased(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_cka_of_batches_equals_sums_over_all_tuples_of_four_divided_at_the_end() -> None:
    x, y = gaussian(18, 3, 0) + 1, gaussian(18, 5, 1)
    y[:, :3] += x
    parts = [(x[i : i + 9], y[i : i + 9]) for i in (0, 9)]
    hsics = [sum(hsic_by_loop(a, b) for a, b in pairs) for pairs in (parts, [(a, a) for a, _ in parts])]
    expected = hsics[0] / (hsics[1] * sum(hsic_by_loop(b, b) for _, b in parts)) ** 0.5
    gathered = CKA(9)
    for a, b in parts:
        gathered.update([a], [b])
    assert float(gathered.matrix()) == pytest.approx(expected, rel=1e-9)


def test_independent_gaussians_have_none_of_the_similarity_that_the_biased_estimator_finds() -> None:
    for n, expected in ((64, 0.92), (256, 0.75), (1024, 0.43)):
        x, y = gaussian(n, 768, 0), gaussian(n, 768, 1)
        assert biased(x, y) == pytest.approx(expected, abs=0.01)
        assert cka(x, y) == pytest.approx(0, abs=0.04)


def test_cka_does_not_change_with_rotation_scale_and_mean_and_does_with_a_linear_map() -> None:
    x, y = gaussian(60, 10, 0), gaussian(60, 10, 1)
    y = y + 2 * x @ gaussian(10, 10, 2)
    rotation = torch.linalg.qr(gaussian(10, 10, 3)).Q
    assert cka(x, 0.01 * x @ rotation + 7) == pytest.approx(1, rel=1e-9)
    assert cka(x, 5 * y @ rotation - 3) == pytest.approx(cka(x, y), rel=1e-9)
    assert cka(x, x * torch.linspace(0.01, 3, 10, dtype=torch.float64)) < 0.9


def test_all_layers_of_two_networks_are_compared_in_one_pass() -> None:
    first = [gaussian(40, 4, 0), gaussian(40, 6, 1)]
    second = [first[1].reshape(40, 3, 2), first[0] + gaussian(40, 4, 2), gaussian(40, 9, 3)]
    gathered = CKA(16)
    for rows in (slice(0, 16), slice(16, 32), slice(32, 40)):
        gathered.update([x[rows] for x in first], [y[rows] for y in second])
    assert gathered.images == 32  # the last eight are no whole batch
    matrix = gathered.matrix()
    assert matrix.shape == (2, 3)
    assert float(matrix[1, 0]) == pytest.approx(1, rel=1e-12)
    for i, j in itertools.product(range(2), range(3)):
        alone = CKA(16)
        for rows in (slice(0, 16), slice(16, 32)):
            alone.update([first[i][rows]], [second[j][rows]])
        assert float(matrix[i, j]) == pytest.approx(float(alone.matrix()), rel=1e-12)


def test_three_images_and_a_batch_larger_than_the_others_are_refused() -> None:
    with pytest.raises(ValueError, match="at least four images"):
        cka(gaussian(3, 4, 0), gaussian(3, 4, 1))
    gathered = CKA(8)
    gathered.update([gaussian(7, 4, 0)], [gaussian(7, 4, 1)])
    with pytest.raises(ValueError, match="no whole batch"):
        gathered.matrix()
    with pytest.raises(ValueError, match="after batches of 8"):
        gathered.update([gaussian(9, 4, 0)], [gaussian(9, 4, 1)])


def test_without_a_size_the_first_batch_gives_it_though_images_of_it_were_corrupt() -> None:
    x, y = gaussian(31, 4, 0), gaussian(31, 6, 1)
    adaptive, fixed = CKA(), CKA(15)
    for gathered in (adaptive, fixed):
        gathered.update([x[:15]], [y[:15]])
    adaptive.update([x[15:31]], [y[15:31]])  # one more than the first: it had a corrupt image
    fixed.update([x[15:30]], [y[15:30]])
    adaptive.update([x[:7]], [y[:7]])
    assert adaptive.images == 30
    assert torch.equal(adaptive.matrix(), fixed.matrix())
    with pytest.raises(UserError, match=r"^data: 3 intact images in a batch; similarities of layers need at least 4$"):
        CKA().update([x[:3]], [y[:3]])

import math

import pytest
import torch
from torch import Tensor

from unlabeled.representation.lidar import lidar


def views(n: int, q: int, d: int, noise: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 1, d, generator=generator, dtype=torch.float64)
    return means + noise * torch.randn(n, q, d, generator=generator, dtype=torch.float64)


def lidar_by_loop(e: Tensor, delta: float, epsilon: float) -> float:
    n, q, d = e.shape
    means = [sum((e[i, j] for j in range(q)), torch.zeros(d, dtype=e.dtype)) / q for i in range(n)]
    mean = sum(means, torch.zeros(d, dtype=e.dtype)) / n
    s_b, s_w = torch.zeros(d, d, dtype=e.dtype), delta * torch.eye(d, dtype=e.dtype)
    for i in range(n):
        s_b += torch.outer(means[i] - mean, means[i] - mean) / (n - 1)
        for j in range(q):
            s_w += torch.outer(e[i, j] - means[i], e[i, j] - means[i]) / (n * (q - 1))
    values, vectors = torch.linalg.eigh(s_w)
    root = vectors @ torch.diag(values.pow(-0.5)) @ vectors.T
    whole = root @ s_b @ root
    eigenvalues = torch.linalg.eigvalsh((whole + whole.T) / 2).clamp(min=0).tolist()
    p = [each / sum(eigenvalues) + epsilon for each in eigenvalues]
    return math.exp(-sum(each * math.log(each) for each in p))


@pytest.mark.parametrize(("n", "q", "d"), [(30, 5, 8), (6, 3, 12)])
def test_lidar_equals_the_papers_formula_by_loops(n: int, q: int, d: int) -> None:
    embeddings = views(n, q, d, 0.3) * torch.linspace(3, 0.2, d, dtype=torch.float64) + 4
    for delta, epsilon in ((1e-4, 1e-8), (0.5, 1e-3)):
        expected = lidar_by_loop(embeddings, delta, epsilon)
        assert lidar(embeddings, delta, epsilon) == pytest.approx(expected, rel=1e-8)


def test_lidar_is_near_d_for_isotropic_images_and_cannot_pass_their_number_less_one() -> None:
    assert lidar(views(4000, 4, 32, 0.5)) == pytest.approx(32, abs=0.3)
    few = lidar(views(20, 10, 256, 0.1))
    assert 15 < few < 19.01


def test_lidar_counts_only_directions_that_augmentation_does_not_fill() -> None:
    embeddings = views(2000, 6, 16, 0.01)
    embeddings[..., 4:] += 30 * torch.randn(2000, 6, 12, generator=torch.Generator().manual_seed(1)).double()
    assert lidar(embeddings) == pytest.approx(4, abs=0.1)


def test_lidar_of_equal_images_is_zero_and_of_one_view_refused() -> None:
    assert lidar(torch.ones(5, 3, 4)) == 0
    with pytest.raises(ValueError, match="two views"):
        lidar(torch.ones(5, 1, 4))

"""Features of made-up classes, and a grid of heads for them."""

import torch

from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes.sgd_grid import SGDGrid


def clusters(n: int, dim: int, classes: int, seed: int, noise: float = 2.0) -> Features:
    """Gaussians around the same centres for every seed; ``cls`` is the first half of the features, in other units."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    x = centres[labels] + noise * torch.randn(n, dim, generator=generator)
    return Features(3 * x + 5, labels, torch.arange(n), {"cls": x[:, : dim // 2]})


def sgd_grid(rates: list[float], decays: tuple[float, ...] = (0.01,), kinds: tuple[str, ...] = ("last",)) -> SGDGrid:
    """Three epochs of small batches."""
    return SGDGrid(rates, 3, 32, list(decays), momentum=0.9, holdout=0.1, seed=0, features=kinds)

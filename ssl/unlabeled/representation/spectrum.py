"""Measures how many dimensions features use, from their singular values, in float64 on the features' device.

Every number depends on N and on D, and says nothing about how well classes separate. Compare only features of equally
many images under the same transform, with equally many dimensions. Use N ≥ 4·D, better 10·D: fewer images give lower
ranks (an isotropic cloud of 768 dimensions has a RankMe of 244 at N = 256, of 749 at N = 4,096).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Ranks(NamedTuple):
    """The result of :func:`ranks`."""

    rankme: float
    rankme_centred: float
    effective_rank: float  # of the centred features


def rankme(features: Tensor, centred: bool = False, epsilon: float = 1e-7) -> float:
    """Returns RankMe, between 1 and about min(N, D): the exponential of the singular values' entropy.

    exp(−Σ p log p) with p = σ / Σσ + ε, which is not normalised again: Garrido et al. 2023, arXiv:2210.02885. It uses
    singular values, not their squares, and uncentred features: a mean far from zero is one large singular value, and
    lowers RankMe (261.6 instead of 508.0 when centred).

    Args:
        features: [N, D], of any floating-point dtype.
        centred: subtract the mean of each dimension first.
        epsilon: the paper's, for float32.

    Returns:
        0 if all features are zero or, centred, if all rows are equal.
    """
    return _rankme(_singular_values(_grams(features)[1 if centred else 0]), epsilon)


def effective_rank(features: Tensor, centred: bool = True) -> float:
    """Returns the effective rank (Roy and Vetterli 2007): RankMe without ε.

    Between 1 and min(N, D), 0 as in :func:`rankme`.

    Args:
        features: [N, D].
        centred: subtract the mean of each dimension first.
    """
    return _rankme(_singular_values(_grams(features)[1 if centred else 0]), 0.0)


def ranks(features: Tensor, epsilon: float = 1e-7) -> Ranks:
    """Returns RankMe with and without centring, and the effective rank, from one matrix product.

    Args:
        features: [N, D]; costs min(N, D)·N·D multiplications and two eigendecompositions of min(N, D).
        epsilon: of RankMe.
    """
    raw, centred = (_singular_values(gram) for gram in _grams(features))
    return Ranks(_rankme(raw, epsilon), _rankme(centred, epsilon), _rankme(centred, 0.0))


def eigenspectrum(features: Tensor) -> Tensor:
    """Returns the eigenvalues of the covariance of [N, D], largest first: float64 [min(N, D)], divided by N − 1."""
    values: Tensor = torch.linalg.eigvalsh(_grams(features)[1])
    return values.flip(0).clamp(min=0) / max(len(features) - 1, 1)


def alpha_req(features: Tensor, window: tuple[int, int] = (11, 100)) -> tuple[float, float]:
    """Returns α-ReQ, the decay λ_i ∝ i^−α of the covariance's eigenvalues; near 1: healthy, far above: collapsed.

    α is the slope of a line through log λ_i over log i, each rank with weight 1 / i: Agrawal et al. 2022,
    arXiv:2202.05808, with the code of Stringer et al. 2019 that it uses. Report the window with the number.

    Args:
        features: [N, D].
        window: first and last rank of the fit, counted from 1, both included. The default is reptrix's
            ``arange(10, 100)``; the paper's training script has ``arange(3, 100)``, which is (4, 100).

    Returns:
        α, and R² of the fit under the same weights; both NaN if all rows are equal.

    Raises:
        ValueError: there are fewer eigenvalues than the window asks for.
    """
    first, last = window
    eigenvalues = eigenspectrum(features)
    count = min(len(features) - 1, features.shape[1])
    if not 1 <= first < last <= count:
        raise ValueError(f"window={window}: {len(features)} × {features.shape[1]} features have {count} eigenvalues")
    if eigenvalues[0] <= 0:
        return float("nan"), float("nan")
    index = torch.arange(first, last + 1, dtype=torch.float64, device=eigenvalues.device)
    weight = 1 / index
    x, y = -index.log(), eigenvalues[first - 1 : last].clamp(min=1e-16 * float(eigenvalues[0])).log()
    x, y = (each - (weight * each).sum() / weight.sum() for each in (x, y))
    covariance, variance, total = ((weight * each).sum() for each in (x * y, x * x, y * y))
    return float(covariance / variance), float(covariance**2 / (variance * total)) if total > 0 else 1.0


def normalised_std(features: Tensor) -> float:
    """Returns the std of L2-normalised rows [N, D], mean over dimensions: about 1 / √D; 0 if all are equal.

    The alarm of Chen and He 2021, arXiv:2011.10566, section 4.1.
    """
    return float(F.normalize(features.double(), dim=1).std(0, correction=0).mean())


def _grams(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns XᵀX or XXᵀ, whichever is smaller, of the features and of the centred features, from one product."""
    rows = features.double()
    mean = rows.mean(0)
    rows = rows - mean
    if float(rows.norm()) <= torch.finfo(features.dtype).eps * float(features.double().norm()):
        rows = torch.zeros_like(rows)  # the rest is rounding errors
    if len(rows) >= rows.shape[1]:
        centred = rows.T @ rows
        return centred + len(rows) * torch.outer(mean, mean), centred
    centred, along = rows @ rows.T, rows @ mean
    return centred + along[:, None] + along[None] + mean @ mean, centred


def _singular_values(gram: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return values


def _rankme(sigma: Tensor, epsilon: float) -> float:
    total = float(sigma.sum())
    if total == 0:
        return 0.0
    return float(torch.special.entr(sigma / total + epsilon).sum().exp())

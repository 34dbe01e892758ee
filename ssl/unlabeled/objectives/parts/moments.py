"""Variances and covariances of columns over the global batch, with exact gradients on any number of processes."""

from torch import Tensor

from unlabeled import distributed


def column_variances(z: Tensor) -> Tensor:
    """Returns the biased variance of each column over the rows of all processes, with a gradient.

    Args:
        z: [B, D], the same B on every process.

    Returns:
        [D], equal on every process.
    """
    shifted = _shifted(z)
    return distributed.mean(shifted.square().mean(0)) - distributed.mean(shifted.mean(0)).square()


def cross_covariance(z1: Tensor, z2: Tensor) -> Tensor:
    """Returns the biased covariance of each column of ``z1`` with each of ``z2``, as :func:`column_variances`.

    Args:
        z1, z2: [B, D], the same B on every process.

    Returns:
        [D, D], equal on every process.
    """
    a, b = _shifted(z1), _shifted(z2)
    means = distributed.mean(a.mean(0)), distributed.mean(b.mean(0))
    return distributed.mean(a.T @ b / len(a)) - means[0][:, None] * means[1]


def _shifted(z: Tensor) -> Tensor:
    """Moves columns to mean 0 without a gradient: no moment depends on it, and E[z²] − E[z]² then loses no digits.

    So each moment needs one mean over processes, whose backward is exact; a mean of what a mean was taken off is not.
    """
    return z - distributed.mean(z.detach().mean(0))

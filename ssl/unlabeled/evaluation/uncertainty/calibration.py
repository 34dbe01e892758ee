"""Calibration of probabilities: proper scores, calibration error, and temperature scaling.

Everything is computed in float64 from log probabilities [N, C], which may hold -inf for impossible classes.
"""

import math

import torch
from torch import Tensor

BINS = 15  # Guo et al. 2017, arXiv 1706.04599, section 5
COLDEST, HOTTEST = 0.01, 100.0  # range of temperatures


def calibration_metrics(
    log_probabilities: Tensor,
    labels: Tensor,
    held_log_probabilities: Tensor | None = None,
    held_labels: Tensor | None = None,
) -> dict[str, float]:
    """Returns ``nll`` (nats), ``brier``, ``ece``, ``ece_equal_mass``; with held-out images also after scaling.

    Args:
        log_probabilities: [N, C] of the test images, ``labels`` int64 [N].
        held_log_probabilities: [M, C] of images set aside from train, by the same recipe fitted without them, and
            ``held_labels`` int64 [M]: the temperature is fitted on them.

    Returns:
        Numbers for ``Score.metrics``. With held-out images also ``temperature``, ``nll_after_temperature``,
        ``brier_after_temperature`` and ``ece_after_temperature``. An nll is left out where it is infinite, because a
        test image is of a class that no train image has.
    """
    found = _metrics(log_probabilities, labels) | {"ece_equal_mass": ece(log_probabilities, labels, equal_mass=True)}
    if held_log_probabilities is not None and held_labels is not None:
        t = fit_temperature(held_log_probabilities, held_labels)
        after = _metrics(scale_by_temperature(log_probabilities, t), labels)
        found |= {"temperature": t} | {f"{name}_after_temperature": value for name, value in after.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def nll(log_probabilities: Tensor, labels: Tensor) -> float:
    """Returns the mean negative log-likelihood in nats of ``labels`` int64 [N]; infinite if a probability is 0."""
    return -float(log_probabilities.double().gather(1, labels[:, None]).mean())


def brier(log_probabilities: Tensor, labels: Tensor) -> float:
    """Returns the mean over images of Σ_k (p_k − y_k)², from 0 to 2 (Brier 1950)."""
    p = log_probabilities.double().exp()
    hit = p.gather(1, labels[:, None])[:, 0]
    return float((p.square().sum(dim=1) - 2 * hit + 1).mean())


def ece(log_probabilities: Tensor, labels: Tensor, bins: int = BINS, equal_mass: bool = False) -> float:
    """Returns the expected calibration error, 0 to 1: mean gap of confidence and accuracy (Guo et al. 2017, eq. 3).

    Bins are of equal width in the largest probability, (a, b]; with ``equal_mass`` they hold equally many images
    (Nguyen and O'Connor 2015), so that a few bins with nearly all images cannot hide errors.
    """
    confidence, predictions = log_probabilities.double().exp().max(dim=1)
    right = (predictions == labels).double().cpu()
    confidence = confidence.cpu()  # sums over bins have no fixed order on a GPU
    if equal_mass:
        order = confidence.argsort(stable=True)
        place = torch.arange(len(order)) * min(bins, len(order)) // len(order)
        index = torch.empty_like(order)
        index[order] = place
    else:
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        index = torch.bucketize(confidence, edges[1:-1])
    gaps = confidence.new_zeros(bins).index_add_(0, index, right - confidence)
    return float(gaps.abs().sum()) / len(labels)


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """Returns T that minimises the nll of softmax(log p / T) (Guo et al. 2017, section 4.2), from 0.01 to 100.

    Newton's method on 1/T, in which the nll is convex, halving the bracket where a step would leave it. Fit it on
    images that the classifier has not seen, and not on test images. It returns 1 if T has no effect. Where no image
    is wrong T is not below 1: the nll then falls as T falls to 0, and no error says how sure to be.
    """
    faultless = bool((log_probabilities.argmax(dim=1) == labels).all())
    found = _least_nll(log_probabilities, labels)
    return max(1.0, found) if faultless else found


def _least_nll(log_probabilities: Tensor, labels: Tensor) -> float:
    low, high, beta = 1 / HOTTEST, 1 / COLDEST, 1.0
    log_p = log_probabilities.double()
    for _ in range(100):
        slope, curvature = _slope_and_curvature(log_p, labels, beta)
        if slope == 0:
            break
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else 0.0
        before, beta = beta, step if low < step < high else math.sqrt(low * high)
        if abs(beta - before) <= 1e-9 * beta:
            break
    return 1 / beta


def scale_by_temperature(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Returns the log of softmax(log p / T) [N, C]; classes of probability 0 keep it."""
    return (log_probabilities.double() / temperature).log_softmax(dim=1)


def _metrics(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "nll": nll(log_probabilities, labels),
        "brier": brier(log_probabilities, labels),
        "ece": ece(log_probabilities, labels),
    }


def _slope_and_curvature(log_p: Tensor, labels: Tensor, beta: float) -> tuple[float, float]:
    """Returns first and second derivative of the mean nll by β = 1/T: mean E_q[log p] − log p_y, mean Var_q[log p]."""
    q = (log_p * beta).softmax(dim=1)
    finite = log_p.masked_fill(q == 0, 0.0)  # 0 · log 0 is 0
    mean = (q * finite).sum(dim=1)
    slope = mean - log_p.gather(1, labels[:, None])[:, 0]
    return float(slope.mean()), float((q * (finite - mean[:, None]).square()).sum(dim=1).mean())

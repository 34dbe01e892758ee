"""Assigns samples to prototypes such that all prototypes are used: SwAV, SEER and DINOv2."""

import math

import torch.nn.functional as F
from torch import Tensor

from unlabeled import distributed
from unlabeled.objectives.parts.arguments import check_count, check_range, check_shapes
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, counted: Tensor | None = None) -> Tensor:
    """Assigns samples to prototypes softly, using all prototypes equally (arXiv:2006.09882, eq. 3 and 5).

    Each iteration scales the prototypes to equal totals over the samples of all processes, then each sample to total 1.
    As the last scaling is of the samples, the prototypes' totals are near B/K, not exact: a smaller ``epsilon`` needs
    more iterations. The official ``distributed_sinkhorn`` divides exp(scores/ε), which overflows in 16 bits; this
    subtracts logarithms.

    Args:
        scores: [B, K], cosines, not divided by a temperature. B may differ between processes.
        epsilon: above 0; small makes assignments hard.
        iterations: at least 1.
        counted: bool [B], the rows that are samples; others get codes and change none. None: all.

    Returns:
        Codes [B, K] without a gradient; rows sum to 1.

    Raises:
        UserError: scores that are no matrix, an epsilon that is not above 0, or no iteration.
    """
    check_shapes("sinkhorn", {"scores": (scores, "BK")}, empty=True)
    check_range("sinkhorn", epsilon=epsilon)
    check_count("sinkhorn", iterations=iterations)
    log_codes = scores.detach() / epsilon
    for _ in range(iterations):
        log_codes = F.log_softmax(log_codes.sub_(_log_total(log_codes, counted)), dim=1)
    return log_codes.exp_()


def _log_total(log_values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Returns the logarithm of each column's total over the rows of all processes, [B, K] → [K]; cannot overflow."""
    if counted is not None:
        log_values = log_values.masked_fill(~counted[:, None], -math.inf)
    own = log_values.amax(0) if len(log_values) else log_values.new_full(log_values.shape[1:], -math.inf)
    largest = distributed.maximum(own)
    return largest + distributed.total((log_values - largest).exp_().sum(0)).log()

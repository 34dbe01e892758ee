"""Alignment and uniformity on the unit sphere: Wang and Isola 2020, arXiv:2005.10242."""

import torch
from torch import Tensor
from torch.nn import functional as F

PAIRS = 2**22  # computed at a time: 32 MiB of float64


def alignment(x: Tensor, y: Tensor, power: float = 2) -> float:
    """Returns the mean distance of the two embeddings of each image, to a power: 0 if they are equal, at most 4.

    Args:
        x: [N, D], L2-normalised here.
        y: [N, D], of other views of the same images.
        power: α of the paper.
    """
    x, y = (F.normalize(each.double(), dim=1) for each in (x, y))
    return float((x - y).norm(dim=1).pow(power).mean())


def uniformity(x: Tensor, t: float = 2) -> float:
    """Returns log of the mean over pairs i < j of exp(−t·|x_i − x_j|²): 0 if all are equal, −4 + 8 / D if isotropic.

    It is the log of the mean, not the mean of logs over batches, so that values of different N can be compared. Some
    millions of pairs are in memory at a time, for any N.

    Args:
        x: [N, D], L2-normalised here; N²/2 distances are computed.
        t: of the Gaussian kernel.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError("uniformity needs pairs: give at least two rows")
    x = F.normalize(x.double(), dim=1)
    height = max(1, PAIRS // len(x))
    sums = [_log_sum(x[first : first + height], x[first:], t) for first in range(0, len(x), height)]
    pairs = torch.tensor(len(x) * (len(x) - 1) / 2, dtype=torch.float64, device=x.device)
    return float(torch.stack(sums).logsumexp(0) - pairs.log())


def _log_sum(rows: Tensor, columns: Tensor, t: float) -> Tensor:
    """Returns log Σ exp(−t·d²) of the pairs above the diagonal; ``columns`` begins with the rows themselves."""
    exponents = -t * (2 - 2 * rows @ columns.T).clamp_(min=0)
    earlier = torch.ones_like(exponents, dtype=torch.bool).tril_()
    return exponents.masked_fill_(earlier, -torch.inf).flatten().logsumexp(0)

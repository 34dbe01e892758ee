"""The linear classifier of the published probes."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.core.ranges import Channels, Classes, NotNegative
from unlabeled.errors import UserError

Norm = Literal["none", "parameter_free", "affine"]


class LinearHead(nn.Module):
    """Maps features [B, width] to logits [B, classes]; biases start at 0.

    Args:
        width: of the features.
        classes: number of logits.
        init_std: standard deviation of the initial weights, 0 for zeros; None: 1/√width, cut off at twice that (haiku).
        batch_norm: applied to the features first: ``none``, BatchNorm without parameters (``parameter_free``, MAE's
            linear probe), or with scale and shift (``affine``, VISSL's ``eval_mlp``).

    Raises:
        UserError: another value of ``batch_norm``.
    """

    takes_tokens = False

    def __init__(self, width: Channels, classes: Classes, init_std: NotNegative | None, batch_norm: Norm) -> None:
        super().__init__()
        self.norm = _norm(batch_norm, width)
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.bias)
        init_normal(self.linear.weight, init_std)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(features))
        return logits


def _norm(kind: Norm, width: int) -> nn.Module:
    if kind not in ("none", "parameter_free", "affine"):
        raise UserError(f"head.batch_norm={kind} is not one of none, parameter_free, affine")
    if kind == "parameter_free":
        return parameter_free_norm(width)
    return nn.BatchNorm1d(width) if kind == "affine" else nn.Identity()


def init_normal(weight: Tensor, std: float | None) -> None:
    """Draws weights from a normal distribution with that deviation; None as in :class:`LinearHead`."""
    if std is None:
        std = weight.shape[1] ** -0.5
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.normal_(weight, std=std)


def parameter_free_norm(width: int) -> nn.BatchNorm1d:
    """Makes BatchNorm without scale and shift, as in MAE's probe (facebookresearch/mae, main_linprobe.py)."""
    return nn.BatchNorm1d(width, affine=False, eps=1e-6)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross entropy in float32; ``targets`` are classes [B] or probabilities [B, C]."""
    return F.cross_entropy(logits.float(), targets)

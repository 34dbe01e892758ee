"""The linear classifier of the published probes."""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """Features [B, width] → logits [B, classes]; biases start at 0.

    Args:
        width: of the features.
        classes: number of logits.
        init_std: standard deviation of the initial weights, 0 for zeros; None: 1/√width, cut off at twice that (haiku).
        batch_norm: whether features go through BatchNorm without parameters first (MAE's linear probe).
    """

    takes_tokens = False

    def __init__(self, width: int, classes: int, init_std: float | None, batch_norm: bool) -> None:
        super().__init__()
        self.norm = parameter_free_norm(width) if batch_norm else nn.Identity()
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.bias)
        initialise(self.linear.weight, init_std)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(features))
        return logits


def initialise(weight: Tensor, std: float | None) -> None:
    """Normal with that deviation; None as :class:`LinearHead`."""
    if std is None:
        std = weight.shape[1] ** -0.5
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.normal_(weight, std=std)


def parameter_free_norm(width: int) -> nn.BatchNorm1d:
    """BatchNorm without scale and shift, as MAE's probe has it (facebookresearch/mae, main_linprobe.py)."""
    return nn.BatchNorm1d(width, affine=False, eps=1e-6)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in float32; ``targets`` are classes [B] or probabilities [B, C]."""
    return F.cross_entropy(logits.float(), targets)

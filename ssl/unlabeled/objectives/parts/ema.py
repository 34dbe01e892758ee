"""Exponential moving averages of networks: the momentum encoders of MoCo, BYOL and similar methods."""

import copy
import math
from typing import Literal, TypeVar

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from unlabeled.errors import UserError
from unlabeled.objectives.parts.arguments import check_range

Shape = Literal["cosine", "linear"]

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Returns a copy with its own parameters and buffers, none of which an optimizer trains."""
    return copy.deepcopy(module).requires_grad_(False)


def without_drop_path(module: M) -> M:
    """Sets every drop path of ``module`` to 0, in place: teachers leave out nothing, in train mode too."""
    for each in module.modules():
        if isinstance(each, StochasticDepth):  # torchvision's
            each.p = 0.0
        if isinstance(getattr(each, "drop_prob", None), float):  # ours and timm's DropPath
            each.drop_prob = 0.0  # type: ignore[assignment]
    return module


@torch.no_grad()
def update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Updates θ_target ← m·θ_target + (1 − m)·θ_online, in place.

    Only parameters are updated: the BatchNorm statistics of the target come from its own batches and are never averaged
    with the online ones (facebookresearch/moco, issue 70).

    Args:
        target: a :func:`frozen_copy` of ``online``.
        online: the trained network.
        momentum: m in [0, 1].

    Raises:
        UserError: a momentum outside of it.
    """
    if not 0 <= momentum <= 1:
        raise UserError(f"ema.update: momentum={momentum} must be from 0 to 1")
    pairs = list(zip(target.parameters(), online.parameters(), strict=True))
    if pairs:
        # lerp keeps equal weights equal bit for bit, m·θ + (1 − m)·θ does not; foreach: one kernel for all tensors
        torch._foreach_lerp_([pair[0] for pair in pairs], [pair[1] for pair in pairs], 1 - momentum)


@torch.no_grad()
def copy_buffers(target: nn.Module, online: nn.Module) -> None:
    """Copies buffers, such as BatchNorm's statistics, to an average that never runs on training images itself."""
    pairs = list(zip(target.buffers(), online.buffers(), strict=True))
    for dtype in {buffer.dtype for _, buffer in pairs}:  # only tensors of one dtype share a kernel
        own = [pair for pair in pairs if pair[1].dtype == dtype]
        torch._foreach_copy_([pair[0] for pair in own], [pair[1] for pair in own])


def momentum_at(fraction: float, start: float, end: float = 1.0, shape: Shape = "cosine") -> float:
    """Returns the momentum at ``fraction`` in [0, 1] of the run, on its way from ``start`` to ``end``.

    ``cosine`` is m₁ − (m₁ − m₀)·(1 + cos πf)/2, as BYOL (arXiv:2006.07733, section 3.2) and MoCo v3
    (``adjust_moco_momentum``) have it with m₁ = 1; ``linear`` is m₀ + (m₁ − m₀)·f, as I-JEPA and data2vec.

    Raises:
        UserError: a momentum outside of [0, 1], or a shape of another name.
    """
    check_range("momentum_at", most=1, at_least=True, start=start, end=end)
    if shape == "linear":
        return start + (end - start) * fraction
    if shape != "cosine":
        raise UserError(f"momentum_at: shape={shape} is neither cosine nor linear")
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * fraction))

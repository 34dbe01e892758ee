"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): less memory, more time, the same numbers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Makes each block store only its input and compute its forward again in the backward pass; in place.

    Loss, gradients, buffers and random draws are bit for bit the same as without. Copies of a block, such as a momentum
    encoder, are recomputed too; without gradients nothing is computed twice.

    Args:
        blocks: [B, …] → [B, …] each.
    """
    for block in blocks:
        block.forward = partial(_forward, block, type(block).forward)


def is_recomputed(module: nn.Module) -> bool:
    """Returns whether :func:`recompute` was applied to this module."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _forward


def _forward(block: nn.Module, forward: Callable[..., Tensor], x: Tensor, *more: Tensor | None) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(block, x, *more)
    # A compiled graph writes to a block's buffers only once, however often it computes the rest.
    contexts: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, block)}
    recomputed: Tensor = checkpoint(forward, block, x, *more, use_reentrant=False, **contexts)
    return recomputed


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _buffers_kept(block)


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Lets BatchNorm update a copy of its statistics in the second forward, as it sees each batch twice."""
    owners = [(module._buffers, name) for module in block.modules() for name in module._buffers]
    before = [owner[name] for owner, name in owners]
    for (owner, name), buffer in zip(owners, before, strict=True):
        owner[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for (owner, name), buffer in zip(owners, before, strict=True):
            owner[name] = buffer

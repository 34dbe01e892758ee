"""Losses run in float32 whatever precision the network runs in."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss with autocast off and its 16-bit tensors lifted to float32; float64 stays float64."""

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        lifted = [_lift(value) for value in args]
        named = {name: _lift(value) for name, value in kwargs.items()}
        device = next(value.device.type for value in (*lifted, *named.values()) if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*lifted, **named)  # type: ignore[arg-type]

    return wrapped


def _lift(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value

"""Losses run in float32 whatever precision the network runs in."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Run a loss with autocast off and its 16-bit tensors lifted to float32; float64 stays float64.

    Tensors are lifted where they are arguments, or stand in a list that is one.
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        lifted = [_lift(value) for value in args]
        named = {name: _lift(value) for name, value in kwargs.items()}
        device = next(_tensors([*lifted, *named.values()])).device.type
        with torch.autocast(device, enabled=False):
            return loss(*lifted, **named)  # type: ignore[arg-type]

    return wrapped


def _lift(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, list | tuple):
        return [_lift(element) for element in value]
    return value


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list):
        for element in value:
            yield from _tensors(element)

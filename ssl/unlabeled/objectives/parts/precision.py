"""Runs losses in float32, whatever the precision of the network."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Runs a loss with autocast off and its 16-bit tensors converted to float32; float64 stays float64.

    Tensors are converted if they are arguments, or are in a list that is an argument.
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        values, structure = pytree.tree_flatten((args, kwargs))
        device = next(value.device.type for value in values if isinstance(value, Tensor))
        short = (torch.float16, torch.bfloat16)
        lifted = [each.float() if isinstance(each, Tensor) and each.dtype in short else each for each in values]
        args_lifted, kwargs_lifted = pytree.tree_unflatten(lifted, structure)
        with torch.autocast(device, enabled=False):
            return loss(*args_lifted, **kwargs_lifted)

    return wrapped

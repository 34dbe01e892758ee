"""Lets an optimizer skip a step by a flag on the device, which the host need not read."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from unlabeled.core.few_launches import few_launches
from unlabeled.optimizers.lars import LARS


def can_skip(optimizer: Optimizer) -> bool:
    """Prepares an optimizer for :func:`skip_if`; returns whether it can skip by a flag.

    torch's fused optimizers can: so its gradient scaler skips steps (torch/amp/grad_scaler.py). SGD is made fused here
    if nothing else was chosen. LARS can in its form with few launches.
    """
    groups = optimizer.param_groups
    if isinstance(optimizer, LARS):
        return all(few_launches(parameter.device) for group in groups for parameter in group["params"])
    if type(optimizer) is SGD:
        return _fuse(optimizer)
    return all(group.get("fused") for group in groups) and getattr(optimizer, "_step_supports_amp_scaling", False)


def skip_if(optimizer: Optimizer, flag: Tensor) -> None:
    """Lets the next step change neither weights nor state if ``flag``, float [] on their device, is 1."""
    optimizer.found_inf = flag  # type: ignore[attr-defined]


@torch.no_grad()
def _fuse(optimizer: SGD) -> bool:
    """Makes SGD fused, with momenta of 0 for its first step; returns whether its settings allow it.

    torch makes the momenta of a first step without values: skipped, they would stay so. m·0 + g is what it would write
    there, unless there is dampening.
    """
    if not all(_may_be_fused(group) for group in optimizer.param_groups):
        return False
    for group in optimizer.param_groups:
        group["fused"] = True
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
    return True


def _may_be_fused(group: dict[str, Any]) -> bool:
    undecided = group["fused"] is not False and not group["foreach"] and not group["differentiable"]
    return undecided and not (group["momentum"] and group["dampening"])

"""LARS: layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888), in the form of BYOL and MoCo v3."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose step is scaled, for each weight w with gradient g, by trust · ‖w‖ / ‖g + λw‖.

    d = g + λw;  u ← m·u + d · trust·‖w‖/‖d‖;  w ← w − lr·u. The learning rate stays outside the momentum buffer
    (facebookresearch/moco-v3, deepmind byol); SimCLR's code has it inside, which differs only while lr changes.
    Parameters with ndim ≤ 1 (biases, norms) are neither scaled nor decayed. The scale is 1 where a norm is 0.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the gradients that are there; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        update: Tensor = parameter.grad  # type: ignore[assignment]
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            update = update * _trust_ratio(parameter, update, group["trust_coefficient"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(update)
        parameter.sub_(buffer * group["lr"])


def _trust_ratio(weight: Tensor, update: Tensor, trust_coefficient: float) -> Tensor:
    weight_norm, update_norm = weight.norm(), update.norm()
    ratio = trust_coefficient * weight_norm / update_norm
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))  # no sync with the host

"""Defines how a run is optimised: optimizer, learning rate scaling and schedule, and which weights decay."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from unlabeled.core.ranges import Epochs, LearningRate, Milestones, WeightDecay
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.optimizers.schedules import warmup_cosine, warmup_tenths


@dataclass(frozen=True)
class OptimizerConfig:
    """Holds everything that determines the optimizer of a run.

    Args:
        optimizer: a constructor that takes parameter groups with their own ``weight_decay`` and ``lr``; a ``_partial_``
            in the yaml.
        lr: base learning rate.
        lr_scaling: peak rate for a global batch of B images: ``linear`` lr·B/256, ``square_root`` lr·√B, ``none`` lr.
        warmup_epochs: linear rise from 0.
        weight_decay: for every parameter that is decayed.
        decay_bias_and_norm: whether parameters with ndim ≤ 1 are decayed too.
        milestones: epochs after which the rate is divided by ten; None: it falls to 0 by half a cosine.
    """

    optimizer: Callable[..., Optimizer]
    lr: LearningRate
    lr_scaling: Literal["linear", "square_root", "none"]
    warmup_epochs: Epochs
    weight_decay: WeightDecay
    decay_bias_and_norm: bool
    milestones: Milestones | None = None

    def peak_lr(self, batch_size: int) -> float:
        """Returns the learning rate at the end of the warm-up, for ``batch_size`` images over all processes."""
        scales = {"linear": batch_size / 256, "square_root": math.sqrt(batch_size), "none": 1.0}
        if self.lr_scaling not in scales:
            raise UserError(f"optimizer.lr_scaling={self.lr_scaling} is not one of {', '.join(scales)}")
        return self.lr * scales[self.lr_scaling]

    def lr_at(self, progress: Progress, batch_size: int) -> float:
        """Returns the learning rate of one step, a pure function of progress."""
        if self.milestones is not None:
            return self.peak_lr(batch_size) * warmup_tenths(progress.epoch, self.warmup_epochs, self.milestones)
        warmup_steps = self.warmup_epochs * progress.steps_per_epoch
        return self.peak_lr(batch_size) * warmup_cosine(progress.step, warmup_steps, progress.total_steps)

    def build(self, module: nn.Module, batch_size: int) -> Optimizer:
        """Returns an optimizer for every trainable parameter of ``module``."""
        groups = parameter_groups(module, self.weight_decay, self.decay_bias_and_norm)
        optimizer = self.optimizer(groups, lr=self.peak_lr(batch_size))
        optimizer.register_load_state_dict_pre_hook(_as_configured)
        return optimizer


def parameter_groups(module: nn.Module, weight_decay: float, decay_bias_and_norm: bool) -> list[dict[str, Any]]:
    """Returns trainable parameters in up to two groups: those with weight decay, and biases and norms (ndim ≤ 1)."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1 or decay_bias_and_norm]
    spared = [parameter for parameter in trained if parameter.ndim <= 1 and not decay_bias_and_norm]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _as_configured(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Takes momenta from a checkpoint, but decay, betas and kernels from the configuration, which may be newer."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=False)  # torch checks the number of groups itself
    return {**state, "param_groups": [{**now, "params": saved["params"]} for saved, now in pairs]}

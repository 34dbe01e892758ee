"""Defines how a run is optimised: optimizer, learning rate scaling and schedule, and which weights decay."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from unlabeled.core.ranges import EndRate, Epochs, LearningRate, Milestones, SomeShare, WeightDecay
from unlabeled.errors import UserError
from unlabeled.objective import HasRateFactors, Progress
from unlabeled.optimizers.lars import LARS
from unlabeled.optimizers.layer_decay import by_layer
from unlabeled.optimizers.muon import Muon, by_matrix
from unlabeled.optimizers.schedules import warmup_cosine, warmup_seven_sixteenths, warmup_tenths


@dataclass(frozen=True)
class OptimizerConfig:
    """Holds everything that determines the optimizer of a run.

    Args:
        optimizer: a constructor that takes parameter groups with their own ``weight_decay`` and ``lr``; a ``_partial_``
            in the yaml.
        lr: base learning rate.
        lr_scaling: peak rate for a global batch of B images: ``linear`` lr·B/256, ``square_root`` lr·√B, ``none`` lr.
        warmup_epochs: linear rise from ``warmup_start_lr``.
        weight_decay: for every parameter that is decayed.
        decay_bias_and_norm: whether parameters with ndim ≤ 1 are decayed too.
        layer_decay: factor of the rate from each block of the backbone to the one before it, for continued pretraining;
            the heads, and what follows the blocks, have the whole rate. None: one rate for all.
        milestones: epochs after which the rate is divided by ten; None: it falls to ``final_lr`` by half a cosine.
        warmup_start_lr, final_lr: ends of the schedule, whatever the batch: ``lr_scaling`` does not change them.
        cosine: the curve after the warm-up, without ``milestones``: ``half`` of one to ``final_lr``, or
            ``seven_sixteenths`` of one, cos(7πk/16K), which end at 0.195 of the peak (FixMatch).
        decayed_also: endings of names of biases and norms that are treated as weights: decayed, and adapted by LARS.
        final_weight_decay: to which ``weight_decay`` goes by half a cosine over the whole run; None: it is constant.

    Raises:
        UserError: ``final_lr`` beside ``milestones``, or either beside ``cosine=seven_sixteenths``: these end by
            themselves.
    """

    optimizer: Callable[..., Optimizer]
    lr: LearningRate
    lr_scaling: Literal["linear", "square_root", "none"]
    warmup_epochs: Epochs
    weight_decay: WeightDecay
    decay_bias_and_norm: bool
    milestones: Milestones | None = None
    layer_decay: SomeShare | None = None
    warmup_start_lr: EndRate = 0.0
    final_lr: EndRate = 0.0
    final_weight_decay: WeightDecay | None = None
    decayed_also: Sequence[str] = ()
    cosine: Literal["half", "seven_sixteenths"] = "half"

    def __post_init__(self) -> None:
        if self.cosine not in ("half", "seven_sixteenths"):
            raise UserError(f"optimizer.cosine={self.cosine}: allowed are half and seven_sixteenths")
        if self.cosine != "half" and (self.final_lr or self.milestones is not None):
            given = f"final_lr={self.final_lr}" if self.final_lr else f"milestones={list(self.milestones or ())}"
            raise UserError(f"optimizer.cosine={self.cosine} ends by itself: leave optimizer.{given} out")
        if self.milestones is not None and self.final_lr:
            raise UserError(
                f"optimizer.final_lr={self.final_lr}: optimizer.milestones end the schedule by themselves: give 0, or"
                " optimizer.milestones=null"
            )

    def peak_lr(self, batch_size: int) -> float:
        """Returns the learning rate at the end of the warm-up, for ``batch_size`` images over all processes."""
        scales = {"linear": batch_size / 256, "square_root": math.sqrt(batch_size), "none": 1.0}
        if self.lr_scaling not in scales:
            raise UserError(f"optimizer.lr_scaling={self.lr_scaling} is not one of {', '.join(scales)}")
        return self.lr * scales[self.lr_scaling]

    def lr_at(self, progress: Progress, batch_size: int) -> float:
        """Returns the learning rate of one step, a pure function of progress."""
        peak = self.peak_lr(batch_size)
        start, final = self.warmup_start_lr / peak, self.final_lr / peak
        if self.milestones is not None:
            return peak * warmup_tenths(progress.epoch, self.warmup_epochs, self.milestones, start)
        warmup_steps = self.warmup_epochs * progress.steps_per_epoch
        if self.cosine == "seven_sixteenths":
            return peak * warmup_seven_sixteenths(progress.step, warmup_steps, progress.total_steps, start)
        return peak * warmup_cosine(progress.step, warmup_steps, progress.total_steps, start, final)

    def weight_decay_at(self, progress: Progress) -> float:
        """Returns the weight decay of one step, a pure function of progress."""
        if self.final_weight_decay is None:
            return self.weight_decay
        share = 0.5 * (1 + math.cos(math.pi * progress.fraction))
        return self.final_weight_decay + (self.weight_decay - self.final_weight_decay) * share

    def set_step(self, optimizer: Optimizer, progress: Progress, batch_size: int) -> None:
        """Gives each group its learning rate and weight decay of one step."""
        rate, peak = self.lr_at(progress, batch_size), self.peak_lr(batch_size)
        for group in optimizer.param_groups:
            group["lr"] = (peak if group.get("constant_lr") else rate) * group.get("lr_scale", 1.0)
            if self.final_weight_decay is not None and self._decays(group):
                group["weight_decay"] = self.weight_decay_at(progress)

    def _decays(self, group: Mapping[str, Any]) -> bool:
        """Tells whether a group of :func:`parameter_groups` is decayed."""
        named = group.get("decayed_also", False)  # and not adapt_all, which LARS may give to every group
        return self.decay_bias_and_norm or group["params"][0].ndim > 1 or named

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Returns every trainable parameter of ``module`` in groups with their decay and factors of the rate.

        Raises:
            UserError: ``decayed_also``, ``layer_decay`` or the optimizer does not go with the parameters.
        """
        given = getattr(self.optimizer, "keywords", {})
        if self._is(LARS) and self.decay_bias_and_norm and self.weight_decay and not given.get("adapt_all"):
            raise UserError(
                "optimizer.decay_bias_and_norm=true: LARS decays what it adapts: give"
                " optimizer.optimizer.adapt_all=true too, or false"
            )
        groups = parameter_groups(module, self.weight_decay, self.decay_bias_and_norm, self.decayed_also)
        if self.layer_decay is not None:
            groups = by_layer(groups, module, self.layer_decay)
        if isinstance(module, HasRateFactors):
            groups = by_rate(groups, module, module.lr_factors())
        if self._is(Muon):
            groups = by_matrix(groups, module)
        return groups

    def _is(self, kind: type[Optimizer]) -> bool:
        return getattr(self.optimizer, "func", self.optimizer) is kind

    def build(self, module: nn.Module, batch_size: int) -> Optimizer:
        """Returns an optimizer for every trainable parameter of ``module``."""
        optimizer = self.optimizer(self.groups(module), lr=self.peak_lr(batch_size))
        optimizer.register_load_state_dict_pre_hook(_as_configured)
        optimizer.register_load_state_dict_post_hook(_in_the_format_of_weights)
        return optimizer


def _in_the_format_of_weights(optimizer: Optimizer) -> None:
    """Gives what was loaded the strides of its weight: fused kernels refuse others, or on a CPU mix up the values.

    A state that FSDP wrote is contiguous, and the weights of a convolution are channels last elsewhere.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            same = isinstance(value, Tensor) and value.shape == parameter.shape and not isinstance(value, DTensor)
            if same and value.stride() != parameter.stride() and not isinstance(parameter, DTensor):
                slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def parameter_groups(
    module: nn.Module, weight_decay: float, decay_bias_and_norm: bool, decayed_also: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Returns trainable parameters in up to three groups, of which an empty one is left out.

    Those with weight decay; biases and norms (ndim ≤ 1) without it; and those of them whose names end as
    ``decayed_also`` says, with decay and ``adapt_all``, by which LARS scales them as it does weights.

    Raises:
        UserError: an ending that no parameter's name has.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if unknown := [end for end in decayed_also if not any(name.endswith(end) for name, _ in trained)]:
        raise UserError(f"optimizer.decayed_also={list(decayed_also)}: no parameter's name ends in {unknown[0]}")
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": weight_decay, "adapt_all": True, "decayed_also": True},
    ]
    for name, parameter in trained:
        named = parameter.ndim <= 1 and name.endswith(tuple(decayed_also))
        place = 2 if named else 0 if parameter.ndim > 1 or decay_bias_and_norm else 1
        groups[place]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def by_rate(
    groups: Sequence[dict[str, Any]], module: nn.Module, factors: Mapping[str, float | Literal["constant"]]
) -> list[dict[str, Any]]:
    """Divides groups by the factors that a method has on the rates of its parameters.

    Args:
        groups: as an optimizer takes them.
        module: with the parameters.
        factors: of :meth:`~unlabeled.objective.HasRateFactors.lr_factors`.

    Returns:
        Groups with their ``lr_scale``; ``constant_lr`` is True where the rate stays at the peak.

    Raises:
        UserError: a name that is no parameter's.
    """
    own: dict[Tensor, float | str] = {}
    names = dict(module.named_parameters())
    for name, factor in factors.items():
        if name not in names:
            raise UserError(f"{type(module).__name__}.lr_factors: {name} is no parameter")
        own[names[name]] = factor
    divided = []
    for group in groups:
        parts: dict[float | str, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            parts[own.get(parameter, 1.0)].append(parameter)
        divided += [{**group, **_rate(group, factor), "params": parameters} for factor, parameters in parts.items()]
    return divided


def _rate(group: dict[str, Any], factor: float | str) -> dict[str, Any]:
    if factor == "constant":
        return {"constant_lr": True}
    return {} if factor == 1.0 else {"lr_scale": group.get("lr_scale", 1.0) * float(factor)}


def _as_configured(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Takes momenta from a checkpoint, but decay, betas and kernels from the configuration, which may be newer."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=False)  # torch checks the number of groups itself
    return {**state, "param_groups": [{**now, "params": saved["params"]} for saved, now in pairs]}

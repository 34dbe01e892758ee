"""LARS: layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888), in the form of BYOL and MoCo v3."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from unlabeled import distributed
from unlabeled.core.few_launches import few_launches
from unlabeled.core.ranges import LearningRate, PartialShare, WeightDecay
from unlabeled.core.seeding import to_device
from unlabeled.distributed.dtensor import local_shard
from unlabeled.errors import UserError
from unlabeled.optimizers.closure import loss_of

SMALLEST_RATE = 1e-30  # a warm-up starts at 0, by which Python does not divide


class LARS(Optimizer):
    """SGD with momentum that scales the step of each weight w with gradient g by trust · ‖w‖ / ‖g + λw‖.

    d = g + λw;  u ← m·u + d · trust·‖w‖/‖d‖;  w ← w − lr·u. The learning rate is outside of the momentum buffer
    (facebookresearch/moco-v3, deepmind byol), which differs from the other way only while lr changes.
    Parameters with ndim ≤ 1 (biases, norms) are neither scaled nor decayed. The scale is 1 where a norm is 0.
    Parameters may be sharded over all processes (FSDP2); norms are of the whole tensors. With few launches an attribute
    ``found_inf``, float [], skips a step where it is 1, as in torch's fused optimizers.

    With ``adapt_all`` those too are scaled and decayed, as by the LARC of apex, which SwAV and SEER use. With
    ``rate_in_momentum`` u ← m·u + lr·d · trust·‖w‖/‖d‖ and w ← w − u, as in the code of SimCLR and PAWS.

    With ``clip`` as in solo-learn (solo/utils/lars.py): the scale is min(trust·‖w‖ / (‖g‖ + λ‖w‖ + 1e-8) / lr, 1), so
    that no weight moves faster than by plain SGD; where a norm is 0, g is neither scaled nor decayed.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: LearningRate,
        momentum: PartialShare = 0.9,
        weight_decay: WeightDecay = 0.0,
        trust_coefficient: Annotated[float, Interval(gt=0, le=1000)] = 0.001,
        clip: bool = False,
        adapt_all: bool = False,
        rate_in_momentum: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "clip": clip,
            "adapt_all": adapt_all,
            "rate_in_momentum": rate_in_momentum,
        }
        super().__init__(params, defaults)
        self._rows: dict[tuple[int, ...], Rows] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; raises UserError, a ValueError like torch's, for a number below 0 or not finite."""
        for name, value in {**self.defaults, **param_group}.items():
            if name in self.defaults and not isinstance(value, Tensor) and not 0 <= value < math.inf:
                raise UserError(f"LARS: {name}={value} must be at least 0 and finite")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step with the existing gradients; parameters without a gradient stay as they are."""
        loss = loss_of(closure)
        joined: dict[tuple[float, float], list[Step]] = {}
        for group in self._groups_of_kernels():
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained and few_launches(trained[0].device):
                rate = 1.0 if group["rate_in_momentum"] else group["lr"]
                joined.setdefault((rate, group["momentum"]), []).extend(self._steps(trained, group))
                continue
            for adapted in _together([each for each in trained if each.ndim > 1 or group["adapt_all"]]):
                self._move(adapted, (_clipped if group["clip"] else _adapted)(adapted, group), group)
            if vectors := [each for each in trained if each.ndim <= 1 and not group["adapt_all"]]:
                self._move(vectors, [local_shard(parameter.grad) for parameter in vectors], group)
        for (rate, momentum), steps in joined.items():
            _move_together(steps, rate, momentum, getattr(self, "found_inf", None))
        return loss

    def _groups_of_kernels(self) -> list[dict[str, Any]]:
        """Returns the groups; those that differ in ``adapt_all`` alone share the kernels of their adapted weights."""
        if len({group["adapt_all"] for group in self.param_groups}) == 1:
            return self.param_groups
        joined: dict[tuple[object, ...], dict[str, Any]] = {}
        for group in self.param_groups:
            settings = tuple(group[name] for name in self.defaults if name != "adapt_all")
            for parameter in group["params"]:
                adapted = parameter.ndim > 1 or group["adapt_all"]
                of_kind = joined.setdefault((adapted, *settings), {**group, "params": [], "adapt_all": adapted})
                of_kind["params"].append(parameter)
        return list(joined.values())

    def _move(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [local_shard(self._momentum_of(parameter)) for parameter in parameters]
        into, out = (group["lr"], 1.0) if group["rate_in_momentum"] else (1.0, group["lr"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates, alpha=into)
        torch._foreach_add_([local_shard(parameter) for parameter in parameters], buffers, alpha=-out)

    def _steps(self, parameters: list[Tensor], group: dict[str, Any]) -> "list[Step]":
        """Returns weight, update and momentum of each parameter: with few kernels, 10 for all that are adapted."""
        adapted = [parameter for parameter in parameters if parameter.ndim > 1 or group["adapt_all"]]
        vectors = [parameter for parameter in parameters if parameter.ndim <= 1 and not group["adapt_all"]]
        raw = [local_shard(each.grad) for each in vectors if each.grad is not None]
        if group["rate_in_momentum"] and raw:  # the updates of the adapted parameters have the rate already
            raw = list(torch._foreach_mul(raw, group["lr"]))
        weights = [local_shard(parameter) for parameter in (*adapted, *vectors)]
        buffers = [local_shard(self._momentum_of(parameter)) for parameter in (*adapted, *vectors)]
        return list(zip(weights, [*self._scaled(adapted, group), *raw], buffers, strict=True))

    def _scaled(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Returns the update of each adapted parameter before momentum, in memory that is kept for the next step."""
        if not parameters:
            return []
        rows = self._rows.get(key := tuple(map(id, parameters)))
        if rows is None:
            rows = self._rows[key] = Rows([local_shard(parameter) for parameter in parameters])
        weights, cut = [local_shard(parameter) for parameter in parameters], isinstance(parameters[0], DTensor)
        torch._foreach_copy_(rows.parts, [local_shard(each.grad) for each in parameters if each.grad is not None])
        if group["clip"]:
            norms = F.threshold(_norms([*weights, *rows.parts], cut), 0.0, math.inf, inplace=True)
            weight_norms, gradient_norms = norms.chunk(2)
            ratios = _clipped_ratios(weight_norms, gradient_norms, rows.zeros, rows.ones, group)
            if group["rate_in_momentum"]:
                ratios.mul_(group["lr"])
            torch._foreach_add_(rows.parts, weights, alpha=group["weight_decay"])
        else:
            torch._foreach_add_(rows.parts, weights, alpha=group["weight_decay"])
            weight_norms, update_norms = _norms([*weights, *rows.parts], cut).chunk(2)
            rate = group["lr"] if group["rate_in_momentum"] else 1.0
            ratios = (rate * group["trust_coefficient"]) * weight_norms / update_norms
            ratios = F.threshold(ratios, 0.0, rate, inplace=True).nan_to_num_(nan=rate, posinf=rate)  # a norm is 0
        rows.values.mul_(ratios.index_select(0, rows.part)[:, None])
        return rows.parts

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


Step = tuple[Tensor, Tensor, Tensor]  # weight, update, momentum; local shards under FSDP


def _move_together(steps: list[Step], rate: float, momentum: float, skipped: Tensor | None) -> None:
    """u ← m·u + d;  w ← w − rate·u of all parameters, in one call; nothing if ``skipped``, float [], is 1."""
    weights, updates, buffers = (list(each) for each in zip(*steps, strict=True))
    torch._fused_sgd_(
        weights,
        updates,
        buffers if momentum else [],  # the kernel of a GPU refuses them without momentum
        weight_decay=0.0,
        momentum=momentum,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=skipped,
    )


class Rows:
    """Tensors of one shape each, in rows of one matrix: one kernel multiplies each tensor by a number of its own.

    Args:
        like: the tensors' shapes, memory formats and type.
    """

    WIDTH = 1024  # values in a row; of the last row of a tensor some are not used

    def __init__(self, like: list[Tensor]) -> None:
        counts = [-(-each.numel() // self.WIDTH) for each in like]
        self.values = like[0].new_zeros(sum(counts), self.WIDTH)
        self.zeros, self.ones = like[0].new_zeros(len(like)), like[0].new_ones(len(like))
        part = torch.repeat_interleave(torch.arange(len(like)), torch.tensor(counts))
        self.part = to_device(part, like[0].device)  # the tensor of each row
        starts = (self.WIDTH * (sum(counts[:number])) for number in range(len(like)))
        self.parts = [
            self.values.as_strided(each.shape, torch.empty_like(each).stride(), start)
            for each, start in zip(like, starts, strict=True)
        ]


def _together(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yields parameters that share kernels: all, or one by one on a CPU, where each stays in the cache for its update.

    On two cores a ResNet-50 took 30 ms one by one, 43 ms all together, and 57 ms by the plain formula.
    """
    if parameters and (parameters[0].device.type != "cpu" or isinstance(parameters[0], DTensor)):
        yield parameters
    else:
        yield from ([parameter] for parameter in parameters)


def _adapted(parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Returns (g + λw) · trust·‖w‖/‖g + λw‖ of each, without waiting for the device; local shards under FSDP."""
    weights = [local_shard(parameter) for parameter in parameters]
    gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
    updates = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
    weight_norms, update_norms = _norms([*weights, *updates], isinstance(parameters[0], DTensor)).chunk(2)
    ratios = group["trust_coefficient"] * weight_norms / update_norms
    ratios = torch.where((weight_norms > 0) & (update_norms > 0), ratios, torch.ones_like(ratios))
    torch._foreach_mul_(updates, list(ratios.unbind()))
    return updates


def _clipped(parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Returns (g + λw) · min(trust·‖w‖ / (‖g‖ + λ‖w‖ + 1e-8) / lr, 1) of each, or g where a norm is 0."""
    weights = [local_shard(parameter) for parameter in parameters]
    gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
    decay = group["weight_decay"]
    weight_norms, gradient_norms = _norms([*weights, *gradients], isinstance(parameters[0], DTensor)).chunk(2)
    rates = group["trust_coefficient"] * weight_norms / (gradient_norms + decay * weight_norms + 1e-8)
    adapted = (weight_norms > 0) & (gradient_norms > 0)
    ratios = torch.where(adapted, (rates / group["lr"]).clamp(max=1), torch.ones_like(rates))
    updates = torch._foreach_mul(weights, list((decay * adapted.to(rates.dtype)).unbind()))
    torch._foreach_add_(updates, gradients)
    torch._foreach_mul_(updates, list(ratios.unbind()))
    return list(updates)


def _clipped_ratios(
    weight_norms: Tensor, gradient_norms: Tensor, zeros: Tensor, ones: Tensor, group: dict[str, Any]
) -> Tensor:
    """Returns min(trust·‖w‖ / (‖g‖ + λ‖w‖ + 1e-8) / lr, 1) [n] of norms that are infinite where they should be 0.

    1 where ‖w‖ is 0, since ∞/∞ is no number and ``fmin`` takes the other; 0 where only ‖g‖ is: no decay then.
    """
    lengths = torch.add(gradient_norms, weight_norms, alpha=group["weight_decay"]).add_(1e-8)
    factor = group["trust_coefficient"] / max(group["lr"], SMALLEST_RATE)
    return torch.fmin(torch.addcdiv(zeros, weight_norms, lengths, value=factor), ones)


def _norms(pieces: list[Tensor], cut: bool) -> Tensor:
    """Returns norms [n]; for shards, over all processes in one message. Squares may overflow in float32."""
    norms = torch.stack(torch._foreach_norm(pieces))
    return distributed.total(norms.double().square()).sqrt().to(norms.dtype) if cut else norms

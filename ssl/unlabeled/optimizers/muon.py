"""Muon for the matrices and kernels of a backbone's blocks, and AdamW for everything else."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from unlabeled.core.ranges import Count, LearningRate, PartialShare, WeightDecay
from unlabeled.errors import UserError
from unlabeled.optimizers.closure import loss_of


class Muon(Optimizer):
    """Moves each matrix by the nearest orthogonal matrix to its momentum, and other parameters by AdamW.

    Jordan 2024 (kellerjordan.github.io/posts/muon), with the factor of Liu et al. 2025 (arXiv:2502.16982) on the
    orthogonal matrix, 0.2·√max(rows, columns): its step is as long as one of AdamW, and both have one learning rate.
    The kernel of a convolution is a matrix with a row for each output channel. The steps are torch's own:
    :class:`torch.optim.Muon`, which takes matrices alone, and :class:`torch.optim.AdamW`.

    Args:
        params: groups of :func:`by_matrix`, each with ``orthogonal``.
        lr: learning rate of both.
        weight_decay: of both, decoupled.
        momentum: Nesterov's, of the matrices.
        newton_schulz_steps: iterations, in bfloat16, that make a matrix orthogonal.
        betas, eps: of AdamW.

    Raises:
        UserError: weights that are sharded (FSDP): half of a matrix is not made orthogonal by itself.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: LearningRate,
        weight_decay: WeightDecay = 0.1,
        momentum: PartialShare = 0.95,
        newton_schulz_steps: Count = 5,
        betas: tuple[PartialShare, PartialShare] = (0.9, 0.999),
        eps: Annotated[float, Interval(gt=0, le=1)] = 1e-8,
    ) -> None:
        given = list(params)
        if any(isinstance(parameter, DTensor) for group in given for parameter in group["params"]):
            raise UserError(
                "optimizer=muon does not take sharded weights: give trainer.strategy=ddp, or optimizer=adamw"
            )
        # by these the plan knows how many numbers are kept for each weight
        kinds = [{"momentum": momentum} if group["orthogonal"] else {"betas": tuple(betas)} for group in given]
        groups = [{**group, **kind} for group, kind in zip(given, kinds, strict=True)]
        # fused: torch then loads AdamW's number of steps to the device of the weight
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "fused": True})
        anything = [nn.Parameter(torch.zeros(1, 1))]  # both get what they move in each step
        factor = "match_rms_adamw"  # torch's name for that of arXiv:2502.16982
        self._muon = torch.optim.Muon(anything, momentum=momentum, ns_steps=newton_schulz_steps, adjust_lr_fn=factor)
        self._adamw = AdamW(anything, betas=(betas[0], betas[1]), eps=eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step with the existing gradients; parameters without a gradient stay as they are."""
        loss = loss_of(closure)
        for group in self.param_groups:
            (self._move_matrices if group["orthogonal"] else self._move_others)(group)
        return loss

    def _move_matrices(self, group: dict[str, Any]) -> None:
        """Steps of torch.optim.Muon on the weights as matrices, which share their memory."""
        matrices, momenta = [], {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                matrix = _as_matrix(parameter.detach(), parameter)
                matrix.grad = _as_matrix(parameter.grad, parameter)
                momenta[matrix] = {"momentum_buffer": _as_matrix(state["momentum_buffer"], parameter)}
                matrices.append(matrix)
        self._muon.state.update(momenta)
        _step_of(self._muon, matrices, group)
        self._muon.state.clear()
        self._muon.param_groups[0]["params"] = []  # else their gradients stay in memory through the next step

    def _move_others(self, group: dict[str, Any]) -> None:
        self._adamw.state = self.state
        _step_of(self._adamw, group["params"], group)


def _step_of(optimizer: Optimizer, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
    """A step of ``optimizer`` on these parameters with the rate and decay of ``group``."""
    optimizer.param_groups[0].update(params=parameters, lr=group["lr"], weight_decay=group["weight_decay"])
    optimizer.step()


def _as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """Returns values of a weight's shape, [out, …], as [out, in · kernel], with the columns as they lie in memory.

    They share the memory where the values lie as the weight does, in whichever memory format.
    """
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        values = values.movedim(1, -1)
    return values.flatten(1)


def by_matrix(groups: Sequence[dict[str, Any]], module: nn.Module) -> list[dict[str, Any]]:
    """Divides groups of parameters into matrices and kernels of the backbone's blocks, ``orthogonal``, and the rest.

    The rest is what Jordan 2024 leaves to AdamW: the first layer (stem, patches, positions, tokens), the last ones
    (heads and prototypes), biases and norms.

    Args:
        groups: as an optimizer takes them.
        module: with its ``backbone``, whose ``shards()`` are the blocks. Of one that does not say them, such as timm's,
            all matrices and kernels but the first are taken.

    Raises:
        UserError: no block is trained.
    """
    backbone: Any = getattr(module, "backbone", module)
    blocks = backbone.shards() if hasattr(backbone, "shards") else []
    inside = [parameter for part in blocks or [backbone] for parameter in part.parameters() if parameter.ndim in (2, 4)]
    matrices = {*(inside if blocks else inside[1:])}
    divided = []
    for group in groups:
        for orthogonal in (True, False):
            parameters = [each for each in group["params"] if (each in matrices) is orthogonal]
            divided += [{**group, "params": parameters, "orthogonal": orthogonal}] if parameters else []
    if blocks and not any(group["orthogonal"] for group in divided):
        name = type(backbone).__name__
        raise UserError(f"optimizer=muon: {name} has no block that is trained: give a smaller backbone.freeze")
    return divided

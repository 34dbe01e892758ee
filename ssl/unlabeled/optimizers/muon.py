"""Muon for the matrices of a backbone's blocks, and AdamW for everything else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from unlabeled.core.ranges import Count, LearningRate, PartialShare, Positive, WeightDecay
from unlabeled.errors import UserError


class Muon(Optimizer):
    """Moves each matrix by the nearest orthogonal matrix to its momentum, and other parameters by AdamW.

    Jordan 2024 (kellerjordan.github.io/posts/muon), with the factor of Liu et al. 2025 (arXiv:2502.16982) on the
    orthogonal matrix, 0.2·√max(rows, columns): its step is as long as one of AdamW, and both have one learning rate.
    The steps are torch's own: :class:`torch.optim.Muon` and :class:`torch.optim.AdamW`.

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
        params: Sequence[dict[str, Any]],
        lr: LearningRate,
        weight_decay: WeightDecay = 0.1,
        momentum: PartialShare = 0.95,
        newton_schulz_steps: Count = 5,
        betas: Sequence[PartialShare] = (0.9, 0.999),
        eps: Positive = 1e-8,
    ) -> None:
        groups = [{"lr": lr, "weight_decay": weight_decay, **group} for group in params]
        if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
            raise UserError(
                "optimizer=muon does not take sharded weights: give trainer.strategy=ddp, or optimizer=adamw"
            )
        matrices = [group for group in groups if group["orthogonal"]]
        others = [group for group in groups if not group["orthogonal"]]
        self.parts: list[Optimizer] = []
        if matrices:
            factor = "match_rms_adamw"  # torch's name for that of arXiv:2502.16982
            self.parts += [
                torch.optim.Muon(matrices, momentum=momentum, ns_steps=newton_schulz_steps, adjust_lr_fn=factor)
            ]
        if others:
            self.parts += [AdamW(others, betas=(betas[0], betas[1]), eps=eps, fused=True)]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step with the existing gradients; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            orthogonal = isinstance(part, torch.optim.Muon)
            # anew in each step: a checkpoint that is loaded replaces the groups and the state of this optimizer alone
            part.param_groups = [group for group in self.param_groups if group["orthogonal"] is orthogonal]
            part.state = self.state
            part.step()
        return loss


def by_matrix(groups: Sequence[dict[str, Any]], module: nn.Module) -> list[dict[str, Any]]:
    """Divides groups of parameters into the matrices of the backbone's blocks, ``orthogonal``, and the rest.

    The rest is what Jordan 2024 leaves to AdamW: the first layer (patches, positions, tokens), the last ones (heads and
    prototypes), biases and norms.

    Args:
        groups: as an optimizer takes them.
        module: with its ``backbone``, whose ``shards()`` are the blocks.

    Raises:
        UserError: the blocks have no matrices, as those of a ResNet.
    """
    backbone: Any = getattr(module, "backbone", module)
    blocks = backbone.shards() if hasattr(backbone, "shards") else []
    matrices = {parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2}
    divided = []
    for group in groups:
        for orthogonal in (True, False):
            parameters = [each for each in group["params"] if (each in matrices) is orthogonal]
            divided += [{**group, "params": parameters, "orthogonal": orthogonal}] if parameters else []
    if not any(group["orthogonal"] for group in divided):
        name = type(backbone).__name__
        raise UserError(f"optimizer=muon: the blocks of {name} have no matrices: take a ViT, or another optimizer")
    return divided

"""Limits the gradient of each tensor by itself, as DINO does, or of all tensors of a part together, as DINOv2."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from unlabeled.core.few_launches import few_launches
from unlabeled.optimizers.lars import Rows


class EachClipped:
    """Scales gradients whose norm is above a limit: g ← g · min(1, limit / (‖g‖ + 1e-6)).

    Where few launches count, factors are spread over memory of the gradients' size, which is kept: torch multiplies a
    list of tensors by a list of numbers one by one. A copy begins without that memory.
    """

    def __init__(self) -> None:
        self._rows: Rows | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return EachClipped, ()

    @torch.no_grad()
    def __call__(self, gradients: list[Tensor], limit: float) -> None:
        """Scales them in place; one or more, on one device."""
        norms = torch._foreach_norm(gradients)
        if not few_launches(gradients[0].device) or isinstance(gradients[0], DTensor):
            factors = torch._foreach_mul(torch._foreach_reciprocal(torch._foreach_add(norms, 1e-6)), limit)
            torch._foreach_clamp_max_(factors, 1.0)
            torch._foreach_mul_(gradients, factors)
            return
        if self._rows is None or [each.shape for each in self._rows.parts] != [each.shape for each in gradients]:
            self._rows = Rows(list(gradients))
        rows, together = self._rows, torch.stack(norms).add_(1e-6).reciprocal_().mul_(limit).clamp_(max=1.0)
        rows.values.copy_(together.index_select(0, rows.part)[:, None].expand_as(rows.values))
        torch._foreach_mul_(gradients, rows.parts)


@torch.no_grad()
def clip_parts(parts: Sequence[Iterable[Tensor]], limit: float) -> None:
    """Scales gradients in place, such that those of each part of the parameters together have at most this norm."""
    gradients = [[each.grad for each in part if each.grad is not None] for part in parts]
    gradients = [part for part in gradients if part]
    if any(isinstance(each, DTensor) for part in gradients for each in part):
        for part in parts:
            torch.nn.utils.clip_grad_norm_([each for each in part if each.grad is not None], limit)
        return
    norms = torch.stack(torch._foreach_norm([each for part in gradients for each in part]))
    ends = list(itertools.accumulate(map(len, gradients)))
    joint = torch.stack(torch._foreach_norm(list(torch.tensor_split(norms, ends[:-1]))))
    factors = joint.add_(1e-6).reciprocal_().mul_(limit).clamp_(max=1.0)
    for part, factor in zip(gradients, factors.unbind(), strict=True):
        torch._foreach_mul_(part, factor)

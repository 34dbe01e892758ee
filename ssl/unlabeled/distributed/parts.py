"""Normalises each part of a batch by its own statistics, all parts at once: the form of a GPU.

Triton kernels do it in two launches without copies, where they can be built. Elsewhere, and in what torch compiles, it
is one BatchNorm with channels for each part, between two copies.
"""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_library: Any = torch.library
_OPERATORS = _library.Library("unlabeled", "FRAGMENT")  # operators, so that fake tensors can pass them
_OPERATORS.define(
    "normalise_parts(Tensor images, Tensor? weight, Tensor? bias, int parts, float eps) -> (Tensor, Tensor, Tensor)"
)
_OPERATORS.define(
    "normalise_parts_backward(Tensor gradient, Tensor images, Tensor? weight, Tensor mean, Tensor inverse)"
    " -> (Tensor, Tensor, Tensor)"
)


def normalise_parts(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, parts: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises each part of a batch by its own mean and variance, differentiable.

    Args:
        images: [B, C, h, w].
        weight, bias: [C] each, or None for both.
        parts: consecutive equal parts of the batch.
        eps: added to the variance.

    Returns:
        images normalised, in the type and the memory format of ``images``; mean and 1 / √(variance + eps) of each part,
        [parts, C], without a gradient.
    """
    form = _InTwoKernels if _has_kernels(images) else _BetweenCopies
    made: tuple[Tensor, Tensor, Tensor] = form.apply(images, weight, bias, parts, eps)
    return made


def _has_kernels(images: Tensor) -> bool:
    """Inductor makes kernels of its own, and float64 is for tests."""
    known = images.dtype != torch.float64 and images.is_contiguous(memory_format=torch.channels_last)
    return known and not torch.compiler.is_compiling() and kernels_work(images.device)


@functools.cache
def kernels_work(device: torch.device) -> bool:
    """Checks once on each GPU that the kernels can be built there and give the numbers of the other form.

    Prints one line where they do not.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        difference = _largest_difference(device)
        if difference < 1e-3:
            return True
        reason = f"its kernels differ by {difference:g}"
    except Exception as error:  # whatever the compiler or the driver says
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    print(f"split BatchNorm runs between two copies, which is slower: {reason}")
    return False


def _largest_difference(device: torch.device) -> float:
    """Compares outputs and gradients of both forms on a small batch; draws nothing.

    It may be called within a block that is computed again in the backward pass: what this small graph saves is no part
    of that block, and must not be counted among its tensors.
    """
    values, found = torch.arange(8 * 6 * 5 * 5, dtype=torch.float32).mul(0.7).sin().view(8, 6, 5, 5), []
    for form in (_InTwoKernels, _BetweenCopies):
        images = values.to(device, memory_format=torch.channels_last).requires_grad_()
        weight, bias = (torch.full((6,), value, device=device, requires_grad=True) for value in (0.5, 2.0))
        own = torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
        with own, torch.enable_grad(), torch.autocast(device.type, enabled=False):
            made, mean, inverse = form.apply(images, weight, bias, 2, 1e-5)
            gradients = torch.autograd.grad(made.pow(3).sum(), (images, weight, bias))
        found.append([made.detach(), mean, inverse, *gradients])
    return max(float(((a - b).abs() / (1 + b.abs())).max()) for a, b in zip(*found, strict=True))


class _InTwoKernels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, parts: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        made, mean, inverse = torch.ops.unlabeled.normalise_parts(images, weight, bias, parts, eps)
        ctx.save_for_backward(images, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, inverse)
        return made, mean, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, inverse = ctx.saved_tensors
        of_images, *sums = torch.ops.unlabeled.normalise_parts_backward(gradient, images, weight, mean, inverse)
        of_weight, of_bias = (None if weight is None else each.to(weight.dtype) for each in sums)
        return of_images, of_weight, of_bias, None, None


def _forward(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, parts: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from unlabeled.distributed import split_kernels

    return split_kernels.forward(images, weight, bias, parts, eps)


def _backward(
    gradient: Tensor, images: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from unlabeled.distributed import split_kernels

    return split_kernels.backward(gradient, images, weight, mean, inverse)


def _fake_forward(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, parts: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, inverse = (images.new_empty(parts, images.shape[1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(images), mean, inverse


def _fake_backward(
    gradient: Tensor, images: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(images), mean.new_empty(mean.shape[1]), mean.new_empty(mean.shape[1])


for _name, _run, _pretend in (
    ("normalise_parts", _forward, _fake_forward),
    ("normalise_parts_backward", _backward, _fake_backward),
):
    _library.impl(_OPERATORS, _name, "CUDA")(_run)
    _library.register_fake(f"unlabeled::{_name}", _pretend, lib=_OPERATORS)


class _BetweenCopies(torch.autograd.Function):
    """One call of BatchNorm on [B / parts, parts · C, h, w].

    Statistics, and the values before weight and bias, are float32 (float64 stays float64).
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, parts: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        joined = _side_by_side(images, parts)
        made, mean, inverse = torch.native_batch_norm(joined, None, None, None, None, True, 0.0, eps)
        apart, out = _one_below_the_other(made, parts), torch.empty_like(images)
        if weight is None or bias is None:
            _in_parts(out, parts).copy_(apart)
        else:
            torch.addcmul(_per_channel(bias), apart, _per_channel(weight), out=_in_parts(out, parts))
        ctx.save_for_backward(images, weight, mean, inverse)
        ctx.parts, ctx.eps = parts, eps
        mean, inverse = mean.view(parts, -1), inverse.view(parts, -1)
        ctx.mark_non_differentiable(mean, inverse)
        return out, mean, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, inverse = ctx.saved_tensors
        parts, joined = ctx.parts, _side_by_side(images, ctx.parts)
        repeated = None if weight is None else weight.to(joined.dtype).repeat(parts)
        of_images, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            *(_side_by_side(gradient, parts), joined, repeated, None, None, mean, inverse, True, ctx.eps),
            [True, weight is not None, weight is not None],  # a GPU has no gradient of a weight that is not there
        )
        made = torch.empty_like(images)
        _in_parts(made, parts).copy_(_one_below_the_other(of_images, parts))
        if weight is None:
            return made, None, None, None, None
        sums = (each.view(parts, -1).sum(0).to(weight.dtype) for each in (of_weight, of_bias))
        return made, *sums, None, None


def _side_by_side(images: Tensor, parts: int) -> Tensor:
    """Maps [B, C, h, w] → float [B / parts, parts · C, h, w]: each part has channels of its own. One kernel."""
    apart = _in_parts(images, parts).transpose(0, 1)
    made = torch.empty(apart.shape, dtype=torch.promote_types(images.dtype, torch.float32), device=images.device)
    return made.copy_(apart).flatten(1, 2)


def _one_below_the_other(joined: Tensor, parts: int) -> Tensor:
    """Maps [B / parts, parts · C, h, w] → [parts, B / parts, C, h, w], in the same memory."""
    return joined.view(len(joined), parts, -1, *joined.shape[2:]).transpose(0, 1)


def _in_parts(images: Tensor, parts: int) -> Tensor:
    return images.view(parts, -1, *images.shape[1:])


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]

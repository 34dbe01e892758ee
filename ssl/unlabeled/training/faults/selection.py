"""Overwrites tensors by others where a flag on the device says so, bit for bit and without reading it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class Bits:
    """Views of tensors as whole numbers, by their type; they are made anew only for tensors of other memory."""

    def __init__(self) -> None:
        self._memory: list[tuple[Any, Any]] = []
        self._views: list[list[Tensor]] = []

    def of(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Returns the views. Those of one type are together, since they share kernels."""
        memory = [(each.untyped_storage()._cdata, each.storage_offset()) for each in tensors]
        if memory != self._memory:  # the views keep their memory, so that no other can have the same place
            self._memory, self._views = memory, _by_type(map(_whole_numbers, tensors))
        return self._views


def overwrite(into: Sequence[list[Tensor]], values: Sequence[list[Tensor]], flag: Tensor) -> None:
    """into ← into + flag · (values − into), in whole numbers.

    These wrap around where they overflow, so that the result is exact, and NaN and infinities are bits as others. Three
    kernels for all tensors of a type, and the memory of one more copy for the moment.

    Args:
        into, values: of :meth:`Bits.of`, of tensors with the same shapes, strides and types.
        flag: float or bool [], 0 or 1.
    """
    for old, new in zip(into, values, strict=True):
        change = torch._foreach_sub(new, old)
        torch._foreach_mul_(change, flag.to(old[0].dtype))
        torch._foreach_add_(old, change)


def _whole_numbers(tensor: Tensor) -> Tensor:
    """Returns a view; counters of 64 bits, which every BatchNorm has, are pairs of the numbers that floats become."""
    tensor = tensor.detach()
    if tensor.element_size() == 8 and tensor.is_contiguous():
        return tensor.view(-1).view(torch.int32)
    return tensor.view(WHOLE[tensor.element_size()])


def _by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for each in tensors:
        groups.setdefault(each.dtype, []).append(each)
    return list(groups.values())

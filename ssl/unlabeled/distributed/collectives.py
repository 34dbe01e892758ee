"""Collectives for losses: rank, world size, and gathers of all processes' rows with exact gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unlabeled.distributed.launch import DAY

_local_only: ContextVar[bool] = ContextVar("alone", default=False)


def world_size() -> int:
    """Returns the number of cooperating processes; 1 without torch.distributed and within :func:`local_only`."""
    in_use = dist.is_available() and dist.is_initialized() and not _local_only.get()
    return dist.get_world_size() if in_use else 1


def rank() -> int:
    """Returns the index of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def local_only() -> Iterator[None]:
    """Disables communication inside the block: no code waits for another process."""
    token = _local_only.set(True)
    try:
        yield
    finally:
        _local_only.reset(token)


def first_alone(work: Callable[[], None]) -> None:
    """Has the first process do some work without the others, which wait for it as long as it takes, up to a day.

    A collective of the run's own group would end after minutes (``timeout_minutes``). All processes must call it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        work()
        return
    waiting: Any = dist.new_group(backend="gloo", timeout=DAY)
    if dist.get_rank() == 0:
        with local_only():
            work()
    dist.barrier(group=waiting)
    dist.destroy_process_group(waiting)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients of all processes and returns to each its own rows.

    If the loss is the mean over local rows and gradients are averaged over processes (as by DDP), this gives exactly
    the gradient of one process with the joined batch. Keeping only the local part of the gradient, or averaging it,
    does not.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()  # before empty_like: one memory format on both sides, whatever the views have
        gathered = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def gather(rows: Tensor) -> Tensor:
    """Returns the rows of all processes in rank order, differentiable.

    Args:
        rows: [B, ...], the same B on every process.

    Returns:
        [B × processes, ...]; ``rows`` itself on one process.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Mean(torch.autograd.Function):
    """Mean over processes whose backward is the identity.

    If every process computes the loss from the same mean and gradients are averaged over processes (as by DDP), this
    gives exactly the gradient of one process; summing in the backward would multiply it by the number of processes.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values) / world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def mean(values: Tensor) -> Tensor:
    """Returns the mean of ``values`` over all processes, differentiable; ``values`` itself on one process."""
    if world_size() == 1:
        return values
    averaged: Tensor = _Mean.apply(values)
    return averaged


def total(values: Tensor) -> Tensor:
    """Returns the sum of ``values`` over all processes, without a gradient; ``values`` itself on one process."""
    if world_size() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def maximum(values: Tensor) -> Tensor:
    """Returns the elementwise maximum over all processes, without a gradient; ``values`` itself on one process."""
    if world_size() == 1:
        return values
    largest = values.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows of all processes in rank order, without a gradient; their numbers may differ or be 0.

    Args:
        rows: [n, ...]; n may differ between processes, dtype and the other sizes may not.

    Returns:
        [sum of n, ...]; ``rows`` itself on one process.
    """
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

"""Order of samples as a function of (seed, step): needs no saved state, and is the same on any number of processes."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler

from unlabeled.core.seeding import derive_seed
from unlabeled.data.sources.rowgroups import Blocks
from unlabeled.errors import UserError

DEFAULT_BATCH_SIZE = 256  # conf/train.yaml


class BatchOrder(Protocol):
    """The batches of this process to the end of a run, as lists of positions."""

    batch_size: int  # over all processes
    rank: int
    world_size: int
    next_step: Callable[[], int]
    accumulate: int

    def __iter__(self) -> Iterator[list[int]]: ...
    def __len__(self) -> int: ...


class GlobalOrder(Sampler[list[int]]):
    """Yields the positions of the images of this process, batch by batch, to the end of the run.

    Epoch e is a permutation drawn from (seed, e); batch t of it is its t-th run of ``batch_size`` positions, of which
    process r of W takes the r-th part. Images that do not fill the batches of a last step are left out of that epoch.

    Args:
        size: images in the source.
        batch_size: over all processes.
        total_steps: of the whole run, also for a resumed one.
        seed: of the run.
        rank, world_size: number of this process, and number of processes.
        next_step: returns the next step; called at the start of each iteration. A resumed run starts there without
            reading the earlier images.
        accumulate: batches in a step.
        blocks: runs of neighbouring rows, for files where a random order would read the same bytes many times; the
            permutation is then one by blocks.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        total_steps: int,
        seed: int,
        rank: int,
        world_size: int,
        next_step: Callable[[], int],
        accumulate: int = 1,
        blocks: Blocks | None = None,
    ) -> None:
        check_batch_size(batch_size, size, world_size, accumulate)
        self.size, self.batch_size, self.total_steps, self.seed = size, batch_size, total_steps, seed
        self.rank, self.world_size, self.next_step = rank, world_size, next_step
        self.accumulate, self.blocks, self.steps_per_epoch = accumulate, blocks, size // (batch_size * accumulate)

    def __iter__(self) -> Iterator[list[int]]:
        step = self.next_step()
        while step < self.total_steps:
            epoch, first = divmod(step, self.steps_per_epoch)
            last = min(self.steps_per_epoch, first + self.total_steps - step)
            batches = self.epoch(epoch)[first:last].view((last - first) * self.accumulate, self.world_size, -1)
            # One batch after another: as Python integers an epoch would take 55 bytes an image.
            yield from (batches[number, self.rank].tolist() for number in range(len(batches)))
            step += last - first

    def __len__(self) -> int:
        return self.total_steps * self.accumulate

    def epoch(self, number: int) -> Tensor:
        """Returns the positions of one epoch in order: int64 [steps_per_epoch, accumulate, batch_size]."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
        shape = (self.steps_per_epoch, self.accumulate, self.batch_size)
        if self.blocks is None:
            order = torch.randperm(self.size, generator=generator)
        else:
            order = self.blocks.permutation(generator)
        return order[: math.prod(shape)].view(shape)


def batch_size_for(given: int, size: int) -> int:
    """Returns the batch size of a run on ``size`` images: ``given``, or a smaller one if the default exceeds the data.

    The smaller size is the largest power of two that the images allow: most numbers of processes divide it, and some
    images remain in case one is corrupt. A size that the user chose is not changed.
    """
    if given != DEFAULT_BATCH_SIZE or given <= size:
        return given
    return 1 << (max(1, size).bit_length() - 1)


def check_batch_size(batch_size: int, size: int, world_size: int, accumulate: int = 1) -> None:
    """Raises UserError unless ``accumulate`` batches of that size can be drawn and shared out evenly."""
    if not 0 < batch_size <= size:
        raise UserError(f"batch_size={batch_size}: it must lie between 1 and the {size} training images")
    if not 0 < accumulate <= size // batch_size:
        raise UserError(
            f"accumulate={accumulate}: from 1 to {size // batch_size} batches of {batch_size} images can be drawn"
        )
    if batch_size % world_size:
        raise UserError(f"batch_size={batch_size} is global and must be a multiple of the {world_size} processes")


def plan_steps(max_epochs: int | None, max_steps: int | None, steps_per_epoch: int) -> int:
    """Returns a run's optimizer steps by the limit that comes first; None: no limit. UserError if both are None."""
    limits = [] if max_epochs is None else [max_epochs * steps_per_epoch]
    limits += [] if max_steps is None else [max_steps]
    if not limits or min(limits) < 1:
        raise UserError(f"max_epochs={max_epochs} and max_steps={max_steps}: one of them must be at least 1")
    return min(limits)

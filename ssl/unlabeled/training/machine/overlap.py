"""Copies a batch to the GPU and makes its views while the network still computes the step before it."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils import _pytree as pytree

from unlabeled.data.loaders import Resumable
from unlabeled.objective import Batch

T = TypeVar("T")


class Overlap:
    """Runs what does not need the weights on a second stream of a GPU; only the host decides what runs when.

    Views of two batches exist at a time, of that which the network computes and of the next one: before it makes those
    the host waits until the network is done with the batch before these two. The GPU has a whole batch to do meanwhile.
    For pinned memory that is being copied torch itself waits before it uses it again. Nothing was measured on a GPU.

    Args:
        device: a GPU.
        streams: has the functions of ``torch.cuda`` for streams and events; tests give others.
    """

    def __init__(self, device: torch.device, streams: Any = torch.cuda) -> None:
        self.device, self._streams = device, streams
        self._side: Any = None  # the second stream; made in the process that trains
        self._first = True  # whether no views have been made yet
        self._ends: deque[Any] = deque(maxlen=2)  # events, after the network's work on the last two batches

    def ahead(self) -> AbstractContextManager[None]:
        """Lets operations within the block run on the second stream. Their results need :meth:`hand_over`."""
        self._side = self._side or self._streams.Stream(self.device)
        if self._first:  # what batches use, such as images in memory, was made on the network's stream
            self._side.wait_stream(self._streams.current_stream(self.device))
        block: AbstractContextManager[None] = self._streams.stream(self._side)
        return block

    def views_ahead(self) -> AbstractContextManager[None]:
        """Does the same for the views of a batch, when the network's work on the batch before it is launched."""
        end = self._streams.Event()
        end.record(self._streams.current_stream(self.device))
        self._ends.append(end)
        if len(self._ends) == 2:
            self._ends[0].synchronize()
        block, self._first = self.ahead(), False
        return block

    def hand_over(self, made: T) -> T:
        """Lets what the network does from now on come after the second stream's work so far.

        Args:
            made: tensors in any structure; their memory is not used again before the network is done with them.
        """
        network = self._streams.current_stream(self.device)
        network.wait_stream(self._side)
        for each in pytree.tree_leaves(made):
            if isinstance(each, Tensor):
                keep_for(each, network)
        return made

    def around(self, loader: Resumable) -> Resumable:
        """Returns the loader with its batches on the device."""
        return _Ahead(loader, self)


class _Ahead(Resumable):
    """Copies each batch of a loader on the second stream; also gathers it there, if its images are on the GPU."""

    def __init__(self, loader: Resumable, overlap: Overlap) -> None:
        self.loader, self.overlap = loader, overlap

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            with self.overlap.ahead():
                batch = next(batches, None)
                moved = move_data_to_device(batch, self.overlap.device)
            if batch is None:
                return
            yield self.overlap.hand_over(moved)

    def peek(self) -> Batch:
        with self.overlap.ahead():
            moved: Batch = move_data_to_device(self.loader.peek(), self.overlap.device)
        return self.overlap.hand_over(moved)

    def __len__(self) -> int:
        return len(self.loader)


def overlap_on(device: torch.device) -> Overlap | None:
    """Returns what overlaps on a GPU; None elsewhere, where nothing runs beside the host."""
    return Overlap(device) if device.type == "cuda" else None


def keep_for(tensor: Tensor, stream: Any) -> None:
    """Keeps a tensor's memory, once it is freed, from others until ``stream`` has done all that was launched so far."""
    if tensor.is_cuda:
        tensor.record_stream(stream)

"""Loaders of batches: gathered from memory, or decoded by worker processes."""

import itertools
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from unlabeled.data.companions import CompanionOrder
from unlabeled.data.memory import DecodedSource, decode_or_next
from unlabeled.data.order import BatchOrder
from unlabeled.data.padding import JoinedImages, pad_to_largest
from unlabeled.data.source import CorruptImage, Source
from unlabeled.data.support import SupportOrder, decode_labelled
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Support


class Resumable:
    """Tells Lightning that the loader resumes where a run stopped. It has no state: its order knows the next step."""

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches from the next step on."""
        raise NotImplementedError

    def peek(self) -> Batch:
        """Returns the first batch of the next iteration, without consuming it."""
        return next(iter(self))

    def __len__(self) -> int:
        """Returns the number of batches of the run, or of what is to be seen once."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class ArrayLoader(Resumable):
    """Loads batches from images in memory: in GPU memory if they fit there."""

    def __init__(
        self,
        source: DecodedSource,
        batches: BatchOrder | list[list[int]],
        device: torch.device,
        support: SupportOrder | None = None,
        companions: CompanionOrder | None = None,
    ) -> None:
        self.batches, self.support, self.companions, self.device = batches, support, companions, device
        there, held = _fits_on_gpu(source.images, device), source.images
        self.source = _on(source, device) if there else source
        joined = JoinedImages(held, device) if there and not isinstance(held, Tensor) else None
        self._take = partial(_take, self.source, device, joined)
        self.slots = None if support is None else support.slots.to(self.source.ids.device)

    def __iter__(self) -> Iterator[Batch]:
        labelled = itertools.repeat(None) if self.support is None else self.support
        related = itertools.repeat(None) if self.companions is None else self.companions
        # All start at the trainer's next step; the support never ends.
        for positions, beside, others in zip(self.batches, labelled, related, strict=False):
            batch = self._take(positions)
            batch = batch if others is None else batch._replace(companions=self._take(others))
            yield batch if beside is None else batch._replace(support=self._take_support(beside))

    def _take_support(self, positions: list[int]) -> Support:
        assert self.slots is not None
        taken = self._take(positions)
        return Support(taken.images, taken.ids, self.slots, sizes=taken.sizes, labels=taken.labels)

    def __len__(self) -> int:
        return len(self.batches)


class LazyLoader(Resumable):
    """Loads batches that worker processes decode; a corrupt image is replaced by the next one, counted and listed.

    Without ``keep_shape`` it is left out instead: a probe must not see an image twice, or one without a label. A
    corrupt labelled image of the support is replaced by another one of its class, a corrupt companion by its image.
    """

    def __init__(
        self,
        source: Source,
        batches: BatchOrder | list[list[int]],
        num_workers: int,
        corrupt: list[str],
        keep_shape: bool = True,
        support: SupportOrder | None = None,
        companions: CompanionOrder | None = None,
    ) -> None:
        self.source, self.corrupt, self.keep_shape = source, corrupt, keep_shape
        self._begun: Iterator[Batch] | None = None  # iteration started by peek, not handed out yet
        beside = [each for each in (companions, support) if each is not None]
        self.batches = _Joined(batches, beside) if beside else batches
        self.loader: DataLoader[Any] = DataLoader(
            _LazyImages(source, support, companions is not None),
            batch_sampler=self.batches,
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=IgnoreSignals(),
            generator=torch.Generator(),  # without it the workers' seeds are drawn from the global random state
        )

    def __iter__(self) -> Iterator[Batch]:
        begun, self._begun = self._begun, None  # at the first batch: Lightning makes iterators earlier
        yield from begun or self._batches()

    def peek(self) -> Batch:
        """Returns the first batch of the next iteration, without decoding its images twice."""
        batches = self._begun or self._batches()
        first = next(batches)
        self._begun = itertools.chain([first], batches)
        return first

    def _batches(self) -> Iterator[Batch]:
        for asked, batch in zip(self.batches, self._from_workers(), strict=True):
            others = (each for each in (batch.companions, batch.support) if each is not None)
            got = batch.ids.tolist() + [index for each in others for index in each.ids.tolist()]
            if asked != got:
                self._list_corrupt(asked, got, 0 if batch.companions is None else len(batch.ids))
            if not self.keep_shape:
                batch = _intact(batch, asked)
            if len(batch.ids):
                yield batch

    def _from_workers(self) -> Iterator[Batch]:
        """Yields batches from the workers; names the reason if a worker is killed, as torch reports no reason."""
        try:
            yield from self.loader
        except (ConnectionError, EOFError) as error:
            raise UserError(
                "a worker process was killed, perhaps by the kernel for lack of memory: give fewer num_workers; the "
                "same command goes on from the last checkpoint"
            ) from error

    def __len__(self) -> int:
        return len(self.batches)

    def _list_corrupt(self, asked: list[int], got: list[int], companions: int) -> None:
        """Lists what was replaced, but for companions of images that were: these follow their image."""
        for place, (wanted, used) in enumerate(zip(asked, got, strict=True)):
            image = place - companions if companions <= place < 2 * companions else place
            name = self.source.name(wanted)
            if wanted != used and (image == place or asked[image] == got[image]) and not self._is_listed(name):
                self.corrupt.append(name)
                print(f"skipped a corrupt image ({len(self.corrupt)} so far): {name}")

    def _is_listed(self, name: str) -> bool:
        """Whether an image is among the corrupt ones, some of which stand there with their reason."""
        return any(each == name or each.startswith(f"{name}: ") for each in self.corrupt)


class _Joined(Sampler[list[int]]):
    """Appends the positions of companions and support to those of a batch: a worker is given a single list."""

    def __init__(self, batches: BatchOrder | list[list[int]], beside: Sequence[CompanionOrder | SupportOrder]) -> None:
        self.batches, self.beside = batches, beside

    def __iter__(self) -> Iterator[list[int]]:
        return (list(itertools.chain(*parts)) for parts in zip(self.batches, *self.beside, strict=False))

    def __len__(self) -> int:
        return len(self.batches)


class _LazyImages(Dataset[Batch]):
    def __init__(self, source: Source, support: SupportOrder | None, companions: bool) -> None:
        self.source, self.companions = source, companions
        self.slots = torch.tensor([], dtype=torch.long) if support is None else support.slots
        self.listed = self.slots if support is None else support.positions

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> Batch:
        first = len(indices) - len(self.slots)  # index of the first image of the support
        own = first // 2 if self.companions else first
        decoded = [decode_or_next(self.source, index) for index in indices[:own]]
        batch = self._batch(decoded)
        if self.companions:
            pairs = zip(indices[own:first], indices[:own], decoded, strict=True)
            batch = batch._replace(companions=self._batch(self._companion(*pair) for pair in pairs))
        if not len(self.slots):
            return batch
        labelled = (decode_labelled(self.source, index, self.listed) for index in indices[first:])
        images, ids, sizes = _pad(labelled)
        support = Support(images, ids, self.slots, sizes=sizes, labels=self.source.labels[ids])
        return batch._replace(support=support)

    def _batch(self, decoded: Iterable[tuple[Tensor, int]]) -> Batch:
        images, ids, sizes = _pad(decoded)
        return Batch(images, ids, self.source.labels[ids], sizes=sizes)

    def _companion(self, index: int, asked: int, image: tuple[Tensor, int]) -> tuple[Tensor, int]:
        """Decodes the companion of image ``asked``; where one of the two is corrupt, what stands for the image."""
        if image[1] != asked:
            return image
        try:
            return self.source.decode(index), index
        except CorruptImage:
            return image


class IgnoreSignals:
    """Makes workers ignore signals that a terminal or cluster sends to all, until the training process has stopped.

    The training process also ends its workers by SIGTERM when it exits; it tells them before.
    """

    def __init__(self) -> None:
        self.leaving = multiprocessing.Value("b", 0, lock=False)
        multiprocessing.util.Finalize(None, self._leave, exitpriority=100)  # runs before the workers get SIGTERM

    def _leave(self) -> None:
        self.leaving.value = 1

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ignore)

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and self.leaving.value:
            os._exit(0)


def _pad(decoded: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns images, ids and sizes of a batch."""
    images, ids = zip(*decoded, strict=True)
    together, sizes = pad_to_largest(list(images))
    return together, torch.tensor(ids), sizes


def _as_is(batch: Any) -> Any:
    return batch


def _intact(batch: Batch, asked: list[int]) -> Batch:
    """Drops the rows whose image was replaced by the next one."""
    keep = batch.ids == torch.tensor(asked)
    sizes = None if batch.sizes is None else batch.sizes[keep]
    return Batch(batch.images[keep], batch.ids[keep], batch.labels[keep], sizes=sizes)


def _take(source: DecodedSource, device: torch.device, joined: JoinedImages | None, positions: list[int]) -> Batch:
    """Takes rows of the images in memory, on ``device`` or in pinned memory for a copy that overlaps computing."""
    held, own, sizes = source.images, source.ids.device, None
    # pinned, or the host would wait for the GPU
    rows = torch.tensor(positions, dtype=torch.long, pin_memory=own.type == "cuda")
    rows = rows.to(own, non_blocking=True)
    if isinstance(held, Tensor):
        pinned = device.type == "cuda" and own.type == "cpu"
        images = torch.empty(len(rows), *held.shape[1:], dtype=held.dtype, device=own, pin_memory=pinned)
        # images[rows] copies element by element on a CPU: 6 times as slow at 3 × 32 × 32 bytes.
        torch.index_select(held, 0, rows, out=images)
    elif joined is not None:
        images, sizes = joined.take(positions)
    else:
        images, sizes = pad_to_largest([held[position] for position in positions])
    return Batch(images, source.ids[rows], source.labels[rows], sizes=sizes)


def _on(source: DecodedSource, device: torch.device) -> DecodedSource:
    """Moves images of one size, ids and labels to a device."""
    images, ids, labels = source.images, source.ids.to(device), source.labels.to(device)
    moved = images.to(device) if isinstance(images, Tensor) else images
    return replace(source, images=moved, ids=ids, labels=labels)


def _fits_on_gpu(images: Tensor | list[Tensor], device: torch.device) -> bool:
    """Checks whether the images fit into a quarter of the free GPU memory, so that the rest is left for training."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    needed = images.nbytes if isinstance(images, Tensor) else sum(image.nbytes for image in images)
    return needed < free / 4

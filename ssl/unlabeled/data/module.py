"""Serves one data set for training and for probes: from memory if it fits, else from workers."""

import os
from collections.abc import Callable
from copy import copy
from dataclasses import replace

import pytorch_lightning as pl
import torch
from torch import Tensor

from unlabeled.data.companions import Choice, CompanionOrder, Companions, Neighbours
from unlabeled.data.labels import LabelList
from unlabeled.data.loaders import ArrayLoader, LazyLoader, Resumable
from unlabeled.data.memory import ArraySource, DecodedSource, bytes_needed, decode_all, decode_some
from unlabeled.data.order import BatchOrder, GlobalOrder, check_batch_size, plan_steps
from unlabeled.data.shared_memory import decode_once_per_machine
from unlabeled.data.source import Source, Splits
from unlabeled.data.sources.rowgroups import Blocks
from unlabeled.data.support import BatchesByClass, ClassBalanced, SupportOrder, check_batches_by_class

_Place = tuple[int, int, int, int, int, Callable[[], int], int]  # the arguments that every order of batches takes


class DataModule(pl.LightningDataModule):
    """Serves one data set.

    Args:
        splits: what to train on and what to evaluate on.
        batch_size: over all processes.
        num_workers: processes that decode images; 0 decodes in this one.
        memory_gib: a split that needs no more than this as uint8 is decoded once and kept.
        seed: of the order of samples.
        accumulate: batches in a step.
    """

    def __init__(
        self, splits: Splits, batch_size: int, num_workers: int, memory_gib: float, seed: int, accumulate: int = 1
    ) -> None:
        super().__init__()
        self.splits, self.batch_size, self.num_workers = splits, batch_size, num_workers
        self.memory_bytes, self.seed, self.accumulate = memory_gib * 2**30, seed, accumulate
        self.steps_per_epoch = self.total_steps = 0  # set when the training split is loaded
        self.corrupt = list(splits.corrupt)
        self.around: Callable[[Resumable], Resumable] = lambda loader: loader  # what the loader of a run is put into
        self.support: ClassBalanced | None = None
        self.labels: LabelList | None = None  # labelled images that the support is drawn from
        self.images_per_class: int | None = None  # of a batch; None: labels do not matter
        self._companions: Choice | None = None
        self._train: DecodedSource | Source | None = None
        self._held_out: DecodedSource | Source | None = None

    @property
    def train(self) -> DecodedSource | Source:
        """Returns the training split, decoded on first use if it fits into memory, without corrupt images."""
        if self._train is None:
            self._train = self._fit_into_memory(self.splits.train)
        return self._train

    @property
    def test(self) -> DecodedSource | Source:
        """Returns the test split, likewise; call it only where there is one."""
        assert self.splits.test is not None
        if self._held_out is None:
            self._held_out = self._fit_into_memory(self.splits.test)
        return self._held_out

    def with_test(self, test: Source) -> "DataModule":
        """Returns a module with the same training images, loaded once, and another test split."""
        other = copy(self)
        other.splits, other._held_out = replace(self.splits, test=test, others={}), None
        other.corrupt = list(self.corrupt)
        return other

    def attach_support(self, support: ClassBalanced, processes: int) -> None:
        """Adds labelled images to every batch. Reads labels and names, no image; raises what ``support`` raises."""
        self.support, self.labels = support, support.choose(self.splits.train, processes)

    def attach_companions(self, companions: Companions) -> None:
        """Adds a companion of each image to every batch. Reads no image; raises what ``companions`` raises."""
        self._companions = companions.choice(self.splits.train)

    def attach_neighbours(self, table: Tensor) -> None:
        """Adds one of the images at the positions int64 [N, k] as a companion to each of N images of every batch."""
        self._companions = Neighbours(table)

    def draw_by_class(self, images_per_class: int) -> None:
        """Makes each batch of classes with so many images of each; raises UserError where there are too few."""
        self.images_per_class, train = images_per_class, self.splits.train
        check_batches_by_class(train.labels, train.classes, images_per_class, self.batch_size)

    def plan(self, max_epochs: int | None, max_steps: int | None, device: torch.device | None = None) -> None:
        """Loads the training split, and sets ``steps_per_epoch`` and ``total_steps``.

        With several processes all must call this; they exchange a few numbers over ``device``.
        """
        if self._train is None:
            self._train = self._fit_into_memory(self.splits.train, device)
        check_batch_size(
            self.batch_size, len(self.train.labels), 1, self.accumulate
        )  # corrupt images may have been left out
        self.steps_per_epoch = len(self.train.labels) // (self.batch_size * self.accumulate)
        self.total_steps = plan_steps(max_epochs, max_steps, self.steps_per_epoch)
        if self.support is not None:
            self.support.check(self.train.labels[self._listed()], self.train.classes)

    def train_dataloader(self) -> Resumable:
        """Returns the loader of the run's batches, from the trainer's next step on."""
        assert self.trainer is not None
        order = self._order(self.trainer)
        support, companions = self._support_order(order), self._companion_order(order)
        if isinstance(self.train, DecodedSource):
            device = self.trainer.strategy.root_device
            return self.around(ArrayLoader(self.train, order, device, support, companions))
        rest = self.num_workers, self.corrupt
        return self.around(LazyLoader(self.train, order, *rest, support=support, companions=companions))

    def _order(self, trainer: pl.Trainer) -> BatchOrder:
        run: _Place = (
            *(self.batch_size, self.total_steps, self.seed, trainer.global_rank, trainer.world_size),
            *(lambda: trainer.global_step, self.accumulate),
        )
        if self.images_per_class is not None:
            return BatchesByClass(self.train.labels, self.train.classes, self.images_per_class, *run)
        return GlobalOrder(len(self.train.labels), *run, blocks=self._blocks())

    def _companion_order(self, order: BatchOrder) -> CompanionOrder | None:
        if self._companions is None:
            return None
        ids = self.train.ids if isinstance(self.train, DecodedSource) else torch.arange(len(self.splits.train))
        return CompanionOrder(self._companions, order, self.seed, ids)

    def _blocks(self) -> Blocks | None:
        """Returns the blocks of the order, also for images in memory: the order must not depend on available memory."""
        whole = len(self.train.labels) == len(self.splits.train)
        return getattr(self.splits.train, "blocks", None) if whole else None

    def _support_order(self, order: BatchOrder) -> SupportOrder | None:
        if self.support is None:
            return None
        listed = self._listed()
        labels = self.train.labels[listed]
        return SupportOrder(
            self.support,
            labels,
            listed,
            self.seed,
            order.rank,
            order.world_size,
            next_step=lambda: order.next_step() * self.accumulate,  # a support for each batch
        )

    def _listed(self) -> Tensor:
        """Returns the positions of the listed images in the training split, ascending; corrupt ones may be missing."""
        assert self.labels is not None
        if not isinstance(self.train, DecodedSource):
            return self.labels.ids
        return torch.isin(self.train.ids, self.labels.ids).nonzero().flatten()

    def labelled(self, split: str, batch_size: int) -> ArrayLoader | LazyLoader:
        """Returns a loader of the labelled images of ``train`` or ``test`` in their own order, for probes."""
        source = self.train if split == "train" else self.test
        return self.batches(source, (source.labels >= 0).nonzero().flatten(), batch_size)

    def batches(self, source: DecodedSource | Source, positions: Tensor, batch_size: int) -> ArrayLoader | LazyLoader:
        """Returns a loader of the images at ``positions`` [N], in that order, without views and without corrupt images.

        Returns:
            An iterable of Batch that can be iterated again.
        """
        asked = [rows.tolist() for rows in torch.split(positions, batch_size) if len(rows)]
        if isinstance(source, DecodedSource):
            return ArrayLoader(source, asked, torch.device("cpu"))
        return LazyLoader(source, asked, self.num_workers, self.corrupt, keep_shape=False)

    def _fit_into_memory(self, source: Source, together: torch.device | None = None) -> DecodedSource | Source:
        if self.num_workers:
            decode_some(source)
        if bytes_needed(source) > self.memory_bytes:
            return source
        if together is None or isinstance(source, ArraySource):
            decoded = decode_all(source, self.num_workers)
        else:
            cores = os.cpu_count() or 1
            own = self.num_workers
            decoded = decode_once_per_machine(lambda n: decode_all(source, max(own, min(n * own, cores))), together)
        self.corrupt += decoded.corrupt
        return decoded

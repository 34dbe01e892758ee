"""Batches for training and for probes, from memory where the data set fits and from workers where it does not."""

import itertools
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from unlabeled.data.labels import LabelList
from unlabeled.data.memory import DecodedSource, bytes_needed, decode_all, lazy_decode
from unlabeled.data.order import GlobalOrder, check_batch_size, plan_steps
from unlabeled.data.source import Source, Splits
from unlabeled.data.support import ClassBalanced, SupportOrder, decode_labelled
from unlabeled.objective import Batch, Support


class DataModule(pl.LightningDataModule):
    """Serves one data set.

    Args:
        splits: what to train on and what to evaluate on.
        batch_size: over all processes.
        num_workers: processes that decode images; 0 decodes in this one.
        memory_gib: a split that needs no more than this as uint8 is decoded once and kept.
        seed: of the order of samples.
    """

    def __init__(self, splits: Splits, batch_size: int, num_workers: int, memory_gib: float, seed: int) -> None:
        super().__init__()
        self.splits, self.batch_size, self.num_workers = splits, batch_size, num_workers
        self.memory_bytes, self.seed = memory_gib * 2**30, seed
        self.steps_per_epoch = self.total_steps = 0  # of the run, known once the training split is loaded
        self.corrupt: list[str] = []
        self.support: ClassBalanced | None = None
        self.labels: LabelList | None = None  # what the support is drawn from
        self._train: DecodedSource | Source | None = None

    @property
    def train(self) -> DecodedSource | Source:
        """The training split, decoded on first use if it fits; corrupt images are left out then."""
        if self._train is None:
            self._train = self._fit_into_memory(self.splits.train)
        return self._train

    def serve(self, support: ClassBalanced, processes: int) -> None:
        """Let labelled images come with every batch. Reads labels and names, no image; raises UserError as it does."""
        self.support, self.labels = support, support.choose(self.splits.train, processes)

    def plan(self, max_epochs: int | None, max_steps: int | None) -> None:
        """Set ``steps_per_epoch`` and ``total_steps``."""
        check_batch_size(self.batch_size, len(self.train.labels), 1)  # corrupt images may have been left out
        self.steps_per_epoch = len(self.train.labels) // self.batch_size
        self.total_steps = plan_steps(max_epochs, max_steps, self.steps_per_epoch)
        if self.support is not None:
            self.support.check(self.train.labels[self._listed()], self.train.classes)

    def train_dataloader(self) -> "ArrayLoader | LazyLoader":
        """Batches of the run, from the trainer's next step on."""
        trainer = self.trainer
        assert trainer is not None
        order = GlobalOrder(
            len(self.train.labels),
            self.batch_size,
            self.total_steps,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            next_step=lambda: trainer.global_step,
        )
        support = self._support_order(order)
        if isinstance(self.train, DecodedSource):
            return ArrayLoader(self.train, order, trainer.strategy.root_device, support)
        return LazyLoader(self.train, order, self.num_workers, self.corrupt, support=support)

    def _support_order(self, order: GlobalOrder) -> SupportOrder | None:
        if self.support is None:
            return None
        listed = self._listed()
        labels = self.train.labels[listed]
        return SupportOrder(self.support, labels, listed, self.seed, order.rank, order.world_size, order.next_step)

    def _listed(self) -> Tensor:
        """Positions of the listed images in what is trained on, ascending; corrupt ones may have been left out."""
        assert self.labels is not None
        if not isinstance(self.train, DecodedSource):
            return self.labels.ids
        return torch.isin(self.train.ids, self.labels.ids).nonzero().flatten()

    def labelled(self, split: str, batch_size: int) -> "list[Batch] | LazyLoader":
        """The labelled images of ``train`` or ``test`` in their own order, for probes."""
        source = self.train if split == "train" else self._test()
        return self.batches(source, (source.labels >= 0).nonzero().flatten(), batch_size)

    def batches(self, source: DecodedSource | Source, positions: Tensor, batch_size: int) -> "list[Batch] | LazyLoader":
        """Chosen images of a split in the order of ``positions`` [N]; no views, and corrupt images are left out.

        Returns:
            An iterable of Batch that can be iterated again.
        """
        parts = torch.split(positions, batch_size)
        if isinstance(source, DecodedSource):
            return [_take(source, rows) for rows in parts]
        asked = [rows.tolist() for rows in parts]
        return LazyLoader(source, asked, self.num_workers, self.corrupt, keep_shape=False)

    def _test(self) -> DecodedSource | Source:
        assert self.splits.test is not None
        return self._fit_into_memory(self.splits.test)

    def _fit_into_memory(self, source: Source) -> DecodedSource | Source:
        if bytes_needed(source) > self.memory_bytes:
            return source
        decoded = decode_all(source, self.num_workers)
        self.corrupt += decoded.corrupt
        return decoded


class Resumable:
    """Tells Lightning that a loader goes on where a run was stopped. It has no state: its order knows the next step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class ArrayLoader(Resumable):
    """Batches gathered from one uint8 array, which lies on the GPU where there is room for it."""

    def __init__(
        self, source: DecodedSource, order: GlobalOrder, device: torch.device, support: SupportOrder | None = None
    ) -> None:
        self.order, self.support = order, support
        self.source = _on(source, device) if _has_room(source.images, device) else source

    def __iter__(self) -> Iterator[Batch]:
        for positions, beside in _side_by_side(self.order, self.support):
            batch = _take(self.source, torch.tensor(positions, device=self.source.images.device))
            yield batch if beside is None else batch._replace(support=self._take_support(beside))

    def _take_support(self, positions: list[int]) -> Support:
        assert self.support is not None
        taken = _take(self.source, torch.tensor(positions, device=self.source.images.device))
        return Support(taken.images, taken.ids, self.support.slots.to(taken.ids.device))

    def __len__(self) -> int:
        return len(self.order)


class LazyLoader(Resumable):
    """Batches decoded by worker processes; a corrupt image is replaced by its successor, counted and listed.

    Without ``keep_shape`` it is left out instead: a probe must not see an image twice, nor one without a label. The
    place of a labelled image beside a batch is taken by another one of its class.
    """

    def __init__(
        self,
        source: Source,
        batches: "GlobalOrder | list[list[int]]",
        num_workers: int,
        corrupt: list[str],
        keep_shape: bool = True,
        support: SupportOrder | None = None,
    ) -> None:
        self.source, self.corrupt, self.keep_shape = source, corrupt, keep_shape
        self.batches = batches if support is None else _Joined(batches, support)
        self.loader: DataLoader[Any] = DataLoader(
            _LazyImages(source, support),
            batch_sampler=self.batches,
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=_ignore_ctrl_c,
            generator=torch.Generator(),  # without it the workers' seeds are drawn from the global random state
        )

    def __iter__(self) -> Iterator[Batch]:
        for asked, batch in zip(self.batches, self.loader, strict=True):
            got = batch.ids.tolist() + ([] if batch.support is None else batch.support.ids.tolist())
            if asked != got:
                self._list_corrupt(asked, got)
            if not self.keep_shape:
                batch = _intact(batch, asked)
            if len(batch.ids):
                yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def _list_corrupt(self, asked: list[int], got: list[int]) -> None:
        for wanted, used in zip(asked, got, strict=True):
            name = self.source.name(wanted)
            if wanted != used and name not in self.corrupt:
                self.corrupt.append(name)
                print(f"skipped a corrupt image ({len(self.corrupt)} so far): {name}")


class _Joined(Sampler[list[int]]):
    """Positions of a batch with those of its support behind them: one list is what a worker is given."""

    def __init__(self, batches: "GlobalOrder | list[list[int]]", support: SupportOrder) -> None:
        self.batches, self.support = batches, support

    def __iter__(self) -> Iterator[list[int]]:
        return (positions + beside for positions, beside in zip(self.batches, self.support, strict=False))

    def __len__(self) -> int:
        return len(self.batches)


class _LazyImages(Dataset[Batch]):
    def __init__(self, source: Source, support: SupportOrder | None) -> None:
        self.source = source
        self.slots = torch.tensor([], dtype=torch.long) if support is None else support.slots
        self.listed = self.slots if support is None else support.positions

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> Batch:
        first = len(indices) - len(self.slots)  # of the support
        images, ids = _stacked(lazy_decode(self.source, index) for index in indices[:first])
        batch = Batch(images, ids, self.source.labels[ids])
        if not len(self.slots):
            return batch
        beside = _stacked(decode_labelled(self.source, index, self.listed) for index in indices[first:])
        return batch._replace(support=Support(*beside, self.slots))


def _ignore_ctrl_c(worker: int) -> None:
    """A terminal sends it to every process; the workers must last until the training process has stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stacked(decoded: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, ids = zip(*decoded, strict=True)
    return torch.stack(images), torch.tensor(ids)


def _side_by_side(order: GlobalOrder, support: SupportOrder | None) -> Iterable[tuple[list[int], list[int] | None]]:
    """Both begin at the trainer's next step; only ``order`` ends."""
    return zip(order, itertools.repeat(None) if support is None else support, strict=False)


def _as_is(batch: Any) -> Any:
    return batch


def _intact(batch: Batch, asked: list[int]) -> Batch:
    """Without the rows whose image was replaced by a successor."""
    keep = batch.ids == torch.tensor(asked)
    return Batch(batch.images[keep], batch.ids[keep], batch.labels[keep])


def _take(source: DecodedSource, positions: Tensor) -> Batch:
    return Batch(source.images[positions], source.ids[positions], source.labels[positions])


def _on(source: DecodedSource, device: torch.device) -> DecodedSource:
    images, ids, labels = source.images.to(device), source.ids.to(device), source.labels.to(device)
    return replace(source, images=images, ids=ids, labels=labels)


def _has_room(images: Tensor, device: torch.device) -> bool:
    """Whether a GPU can hold the array and still have three quarters of its free memory for training."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < free / 4

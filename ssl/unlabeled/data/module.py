"""Batches for training and for probes, from memory where the data set fits and from workers where it does not."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unlabeled.data.memory import DecodedSource, bytes_needed, decode_all, lazy_decode
from unlabeled.data.order import GlobalOrder, check_batch_size, plan_steps
from unlabeled.data.source import Source, Splits
from unlabeled.objective import Batch


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
        self._train: DecodedSource | Source | None = None

    @property
    def train(self) -> DecodedSource | Source:
        """The training split, decoded on first use if it fits; corrupt images are left out then."""
        if self._train is None:
            self._train = self._fit_into_memory(self.splits.train)
        return self._train

    def plan(self, max_epochs: int | None, max_steps: int | None) -> None:
        """Set ``steps_per_epoch`` and ``total_steps``."""
        check_batch_size(self.batch_size, len(self.train.labels), 1)  # corrupt images may have been left out
        self.steps_per_epoch = len(self.train.labels) // self.batch_size
        self.total_steps = plan_steps(max_epochs, max_steps, self.steps_per_epoch)

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
        if isinstance(self.train, DecodedSource):
            return ArrayLoader(self.train, order, trainer.strategy.root_device)
        return LazyLoader(self.train, order, self.num_workers, self.corrupt)

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

    def __init__(self, source: DecodedSource, order: GlobalOrder, device: torch.device) -> None:
        self.order = order
        self.source = _on(source, device) if _has_room(source.images, device) else source

    def __iter__(self) -> Iterator[Batch]:
        for positions in self.order:
            yield _take(self.source, torch.tensor(positions, device=self.source.images.device))

    def __len__(self) -> int:
        return len(self.order)


class LazyLoader(Resumable):
    """Batches decoded by worker processes; a corrupt image is replaced by its successor, counted and listed.

    Without ``keep_shape`` it is left out instead: a probe must not see an image twice, nor one without a label.
    """

    def __init__(
        self,
        source: Source,
        batches: "GlobalOrder | list[list[int]]",
        num_workers: int,
        corrupt: list[str],
        keep_shape: bool = True,
    ) -> None:
        self.source, self.batches, self.corrupt, self.keep_shape = source, batches, corrupt, keep_shape
        self.loader: DataLoader[Any] = DataLoader(
            _LazyImages(source),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=_ignore_ctrl_c,
            generator=torch.Generator(),  # without it the workers' seeds are drawn from the global random state
        )

    def __iter__(self) -> Iterator[Batch]:
        for asked, batch in zip(self.batches, self.loader, strict=True):
            if asked != batch.ids.tolist():
                self._list_corrupt(asked, batch.ids.tolist())
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


class _LazyImages(Dataset[Batch]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> Batch:
        decoded = [lazy_decode(self.source, index) for index in indices]
        ids = torch.tensor([used for _, used in decoded])
        return Batch(torch.stack([image for image, _ in decoded]), ids, self.source.labels[ids])


def _ignore_ctrl_c(worker: int) -> None:
    """A terminal sends it to every process; the workers must last until the training process has stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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

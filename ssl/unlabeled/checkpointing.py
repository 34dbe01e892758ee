"""``checkpoints/last.ckpt``: written whole or not at all, at the end of epochs and when someone presses Ctrl-C."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from unlabeled.pretraining import Pretraining


class Interrupted(BaseException):
    """Training was stopped by the user, after a checkpoint was written; not an error."""


class LastCheckpoint(pl.Callback):
    """Keeps the newest state of a run.

    The first Ctrl-C lets the step finish, so that weights, optimizer and counters belong to the same step, writes the
    checkpoint and raises :class:`Interrupted`; a second one stops at once.

    Args:
        path: where the checkpoint goes; the folder is made.
        every_n_epochs: how often, besides the end of the run.
    """

    def __init__(self, path: Path, every_n_epochs: int) -> None:
        self.path, self.every_n_epochs = path, every_n_epochs
        self._interrupted = False
        self._before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = signal.signal(signal.SIGINT, self._remember)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        print("\nfinishing this step and writing a checkpoint; press Ctrl-C again to stop at once")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        interrupted = trainer.world_size == 1 and self._interrupted
        if trainer.world_size > 1:  # a terminal interrupts all processes, though not at the same step
            interrupted = trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)
        if interrupted or pl_module.is_due(self.every_n_epochs):
            self.save(trainer)
        if interrupted:
            raise Interrupted

    def save(self, trainer: pl.Trainer) -> None:
        """Write to a temporary name, then rename: a reader sees the old state or the new one, never half of it."""
        temporary = self.path.with_suffix(".partial")
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)

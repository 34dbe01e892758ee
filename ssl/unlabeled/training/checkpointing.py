"""Decides when a run's state is written: at intervals, at the end, and when a user or the cluster stops the run."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from unlabeled.errors import UserError
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.training.loggers import JsonLines, TensorBoard, WeightsAndBiases
from unlabeled.training.pretraining import Pretraining

# Ctrl-C; end of a job's time or pre-emption; Slurm's --signal=USR1@120, which comes before
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """Raised when training was stopped from outside, after its state was written; not an error.

    Args:
        number: of the signal; 0 if another process received it.
    """

    def __init__(self, number: int) -> None:
        self.number = number or int(signal.SIGTERM)


class Checkpointing(pl.Callback):
    """Writes the state of a run.

    After a signal the step is finished, so that weights, optimizer and counters belong to one step; then the state is
    written and :class:`Interrupted` raised. A second Ctrl-C stops at once.

    Args:
        folder: for the states.
        metrics: the length of this file is saved in each state, so that a resumed run repeats and misses no line.
        every_n_epochs: how often; also at the end of the run.
        every_n_steps: additionally by steps; None: not by steps.
        every_n_minutes: additionally by time, at the end of the current step; None: not by time.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        metrics: JsonLines,
        every_n_epochs: int,
        every_n_steps: int | None,
        every_n_minutes: float | None,
    ) -> None:
        self.folder, self.metrics = folder, metrics
        self.every_n_epochs, self.every_n_steps, self.every_n_minutes = every_n_epochs, every_n_steps, every_n_minutes
        self._signal = 0
        self._asked_by_hand = False  # by a first Ctrl-C
        self._before: dict[int, Any] = {}
        self._group: Any = None  # of the hosts; None: all processes, which ask each other by gloo anyway
        self._written: int | None = None  # step of the state in last.ckpt
        self._since = 0.0  # when the last state was written

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard | WeightsAndBiases):
                logger.begin(trainer.global_step)
        self._since = time.monotonic()
        if trainer.world_size > 1 and torch.distributed.get_backend() == "nccl":
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked_by_hand:
            raise KeyboardInterrupt
        self._asked_by_hand |= number == signal.SIGINT
        if self._signal != signal.SIGUSR1:  # by which the job is put in the queue again, whatever comes after it
            self._signal = number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\n{signal.Signals(number).name}: finishing this step and writing a checkpoint{again}", flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if pl_module.part:  # gradients are being accumulated
            return
        stop = self._on_any_process(trainer, self._signal != 0)
        if stop or self._due(pl_module) or self._time_is_up(trainer):
            self._save(trainer, pl_module)
            stop = self._on_any_process(trainer, self._signal != 0)  # one may have come while it was written
        if stop:
            raise Interrupted(self._signal)

    def _due(self, module: Pretraining) -> bool:
        by_steps = self.every_n_steps is not None and module.global_step % self.every_n_steps == 0
        return by_steps or module.is_due(self.every_n_epochs)

    def _time_is_up(self, trainer: pl.Trainer) -> bool:
        if self.every_n_minutes is None:
            return False
        return self._on_any_process(trainer, time.monotonic() - self._since >= 60 * self.every_n_minutes)

    def _on_any_process(self, trainer: pl.Trainer, here: bool) -> bool:
        """Returns whether it holds on any process: all must write a state, or stop, after the same step.

        The hosts ask each other; NCCL would make each wait for all that its GPU has still to do.
        """
        if trainer.world_size == 1:
            return here
        flag = torch.tensor(int(here))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def _save(self, trainer: pl.Trainer, module: Pretraining) -> None:
        step = trainer.global_step
        if step == self._written:
            return
        module.faults.settle(module)  # it may write metrics, whose end the state holds

        def save(path: Path) -> None:
            trainer.save_checkpoint(path, weights_only=False)

        try:
            self.folder.write(save, self._written, trainer.is_global_zero)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and type(error) is not RuntimeError:
                raise  # out of memory, a process that is gone: no fault of the disk
            kept = "none was written before" if self._written is None else f"that of step {self._written} is whole"
            raise UserError(
                f"{self.folder.folder}: the state of step {step} cannot be written ({error}); {kept}; make room and "
                "give the same command again"
            ) from error
        self._written, self._since = step, time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            logger.save()  # a kill would lose TensorBoard's queue, and no later session writes it again
        checkpoint["metrics_bytes"] = self.metrics.sync() if trainer.is_global_zero else 0

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Drops the metrics of steps that are taken again; reopens a finished run that was made longer."""
        assert isinstance(pl_module, Pretraining)
        self._written = checkpoint["global_step"]
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if self._written < pl_module.total_steps:
            batches["is_last_batch"] = False
        more = self._written * pl_module.accumulate - batches["current"]["ready"]
        for counted in (batches["current"], batches["total"]):  # in the batches of this session's accumulate
            counted.update({name: number + more for name, number in counted.items()})
        if trainer.is_global_zero and "metrics_bytes" in checkpoint:
            self.metrics.truncate(checkpoint["metrics_bytes"])


def requeue(number: int) -> str | None:
    """Asks Slurm to start this job again after SIGUSR1; returns a sentence on the outcome, None outside of Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or number != signal.SIGUSR1:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        return f"job {job} could not be requeued ({reason}); submit it again"
    return f"job {job} is requeued"

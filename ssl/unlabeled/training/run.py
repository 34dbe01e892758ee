"""Runs pretraining from the first step or a checkpoint to the end, and records it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from unlabeled.backbones.frozen import FrozenNetwork
from unlabeled.core.environment import machine
from unlabeled.core.reading import read_utf8
from unlabeled.core.run_config import write_config
from unlabeled.core.writing import Unwritable, make_folder, write_atomic
from unlabeled.data.module import DataModule
from unlabeled.errors import UserError
from unlabeled.objective import HasClassifier
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.training.machine.arithmetic import describe_precision, training_arithmetic
from unlabeled.training.plan.callback import PlanCallback
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.resuming import check_fits, check_length
from unlabeled.training.run_lock import RunLock
from unlabeled.training.same_data import DATA_FILES, has_moved, same_data
from unlabeled.weights.starting.start import write_start
from unlabeled.weights.starting.teacher import write_teacher

DISJOINT = "none has the name of a test image (contents were not compared)"


@dataclass
class Run:
    """Holds the parts of a pretraining run."""

    trainer: pl.Trainer
    module: Pretraining
    data: DataModule
    checkpoints: CheckpointFolder  # where its state is kept
    lock: RunLock | None = None  # on the first process

    @property
    def checkpoint(self) -> Path:
        """Returns the path of the newest state."""
        return self.checkpoints.newest

    def close(self) -> None:
        """Releases the folder for other processes."""
        if self.lock is not None:
            self.lock.release()

    def fit(self, resolved: dict[str, Any]) -> None:
        """Trains to the end, from the checkpoint if there is one, and records the run."""
        begun = self.checkpoints.find()
        run_dir = self.checkpoints.folder.parent
        self._check_labels(run_dir / "labels.txt", begun is not None)
        if begun is not None:
            check_fits(begun, self.module)
        elif self.module.weights is not None and self.trainer.is_global_zero:
            copied = write_start(self.checkpoints.folder, self.module.objective.product())
            self.module.weights = self.module.weights | {"start_sha256": copied}
        if self.trainer.is_global_zero:
            make_folder(run_dir)
            self._keep_teacher()
            same = same_data(self.data.splits.train, run_dir / DATA_FILES, begun, resolved)
            self.module.data_identity = None if same is None else same.brief()
            written, override = run_dir / "config.yaml", resolved.get("resume") == "override"
            if begun is None or override or not written.exists() or has_moved(written, resolved):
                write_config(resolved, run_dir)
            self._record_labels(run_dir / "labels.txt")
            if begun is None:  # drop the metrics of a run that never wrote a checkpoint
                (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        self.module.images = len(self.data.train.labels)
        if isinstance(self.module.objective, HasClassifier):
            self.module.classes = [str(name) for name in self.data.splits.train.classes]
        if begun is not None:
            check_length(begun, self.module)
        for logger in self.trainer.loggers:
            logger.log_hyperparams(resolved)
        started = time.monotonic()
        with training_arithmetic(self.trainer.strategy.root_device), self._at_work():
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=begun)
        if self.trainer.is_global_zero and self.module.steps_taken:
            self._write_summary(run_dir / "training.json", time.monotonic() - started)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Keeps another thread from taking this run for one that is over."""
        if self.lock is not None:
            self.lock.at_work = True
        try:
            yield
        finally:
            if self.lock is not None:
                self.lock.at_work = False

    def plan(self) -> bool:
        """Prints and saves the plan from the current step, changes nothing else; returns whether all checks passed."""
        begun, callbacks = self.checkpoints.find(), self.trainer.callbacks  # type: ignore[attr-defined]
        planning = next(each for each in callbacks if isinstance(each, PlanCallback))
        planning.step = 0 if begun is None else _step_of(begun)
        with training_arithmetic(self.trainer.strategy.root_device):
            self.trainer.fit(self.module, datamodule=self.data)
        return planning.passed

    def _keep_teacher(self) -> None:
        """Writes the teacher beside the checkpoints, once: they do not hold it."""
        objective, record = self.module.objective, self.module.teacher
        if record is None or "copy_sha256" in record:
            return
        frozen = next(each for each in objective.modules() if isinstance(each, FrozenNetwork))
        record["copy_sha256"] = write_teacher(self.checkpoints.folder, frozen.network)

    def _check_labels(self, path: Path, resumes: bool) -> None:
        """Checks that the list of labels has not changed: the configuration names the file, not its content."""
        labels = self.data.labels
        if labels is None or not resumes or not path.exists():
            return
        try:
            same = read_utf8(path) == labels.text
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(f"{path} is not the list of labelled images that objective.support now gives; put it back")

    def _record_labels(self, path: Path) -> None:
        if self.data.labels is not None:
            write_atomic(path, self.data.labels.text)
            print(f"{self.data.labels}; {DISJOINT}")

    def _write_summary(self, path: Path, seconds: float) -> None:
        """Writes what the report says about training: the speed of the last session and the loss at collapse."""
        summary: dict[str, Any] = {
            "steps_of_last_session": self.module.steps_taken,
            "seconds_of_last_session": round(seconds, 1),
            "images_per_second": round(self.module.steps_taken * self.module.images_per_step / seconds, 1),
            "processes": self.trainer.world_size,
            "precision": describe_precision(str(self.trainer.precision), self.trainer.strategy.root_device),
            "parameters": sum(parameter.numel() for parameter in self.module.objective.parameters()),
            "backbone_parameters": sum(parameter.numel() for parameter in self.module.objective.backbone.parameters()),
            "machine": machine(),
            "collapsed_at": self.module.objective.collapsed_at(self.module.plan),
        }
        if self.module.objective.uses_labels:
            summary["uses_labels"] = True
        if self.data.labels is not None:
            summary["labels"] = self.data.labels.summary() | {"test_split": DISJOINT}
        try:
            write_atomic(path, json.dumps(summary, indent=2) + "\n")
        except Unwritable as error:  # the state, which a report needs most, is already written
            print(f"warning: {error}")


def _step_of(path: Path) -> int:
    """Returns the step of a state, which may have been written on a GPU that is not here."""
    return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["global_step"])

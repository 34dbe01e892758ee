"""Writes ``state.json`` to a run's folder: the progress of the run and how it ended, for other programs."""

import json
import os
import socket
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_bytes
from unlabeled.core.writing import write_atomic
from unlabeled.errors import UserError
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.run_lock import TakenOver

EVERY = 2.0  # seconds between two writes (our choice): often enough for readers, cheap for steps
RECENT = 15  # writes over which the speed is measured: half a minute


class Heartbeat(pl.Callback):
    """Lets the first process write ``state.json``: at the start, every two seconds at most, and at the end.

    The file has ``state`` (running, finished, interrupted, failed), ``error`` (the first line of the error, or null),
    ``step``, ``total_steps``, ``steps_per_epoch``, ``images_per_second`` and ``seconds_per_step`` of the last half
    minute, ``seconds_left`` at the speed of this session (null before its second step), ``pid``, ``host``, ``started``
    (of this session) and ``updated`` (Unix time), ``sessions``, the number of times the run was started, and
    ``command``, which goes on with it ("" if unknown). It is replaced atomically. After ``kill -9`` it still says
    running, with the pid of a process that no longer exists.

    Args:
        path: of the file.
        command: that goes on with the run.
    """

    def __init__(self, path: Path, command: str = "") -> None:
        self.path, self.command = path, command
        self._sessions, self._started = 1, time.time()
        self._written = 0.0  # monotonic time, like those below
        self._first: tuple[int, float] | None = None  # step and time after the first step, which may have compiled
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretraining)
        # plan_only, or the command of a run that has ended: nothing is trained, and what the file says stays true
        if trainer.should_stop or trainer.global_step >= pl_module.total_steps:
            return
        self._sessions = 1 + (_sessions_before(self.path) if trainer.global_step else 0)
        self._first = None
        self._recent.clear()
        self._write(trainer, pl_module, "running")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if pl_module.part:  # gradients are being accumulated
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (trainer.global_step, now)
            self._recent.append(self._first)
        elif now - self._written >= EVERY:
            self._recent.append((trainer.global_step, now))
            self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretraining)
        if self._first is None:  # no step was taken
            return
        self._recent.append((trainer.global_step, time.monotonic()))
        whole = trainer.global_step >= pl_module.total_steps
        self._write(trainer, pl_module, "finished" if whole else "interrupted")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, TakenOver):  # the file is the other process's
            return
        stopped = isinstance(exception, Interrupted | KeyboardInterrupt | SystemExit)
        self._write(trainer, pl_module, "interrupted" if stopped else "failed", None if stopped else exception)

    def _write(
        self, trainer: pl.Trainer, module: pl.LightningModule, state: str, error: BaseException | None = None
    ) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        assert isinstance(module, Pretraining)
        content = {"state": state, "error": error and _first_line(error), **self._progress(module), **self._process()}
        with suppress(OSError):  # must not stop the run; writing a checkpoint reports a full disk
            write_atomic(self.path, json.dumps(content, indent=1) + "\n", sync=False)

    def _progress(self, module: Pretraining) -> dict[str, Any]:
        step, now = module.global_step, self._recent[-1] if self._recent else None
        pace = _pace(self._recent[0], now) if now else None
        overall = _pace(self._first, now) if self._first and now else None
        return {
            "step": step,
            "total_steps": module.total_steps,
            "steps_per_epoch": module.steps_per_epoch,
            "images_per_second": pace and round(module.images_per_step / pace, 1),
            "seconds_per_step": pace and round(pace, 5),
            "seconds_left": overall and round(overall * (module.total_steps - step), 3),
        }

    def _process(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": round(self._started, 3),
            "updated": round(time.time(), 3),
            "sessions": self._sessions,
            "command": self.command,
        }


def _pace(since: tuple[int, float], until: tuple[int, float]) -> float | None:
    """Returns the seconds per step; None before there are two steps."""
    return (until[1] - since[1]) / (until[0] - since[0]) if until[0] > since[0] else None


def _sessions_before(path: Path) -> int:
    try:
        return int(parse_json(read_bytes(path))["sessions"])
    except (OSError, ValueError, KeyError, TypeError):  # missing or incomplete: of a version without this file
        return 1


def _first_line(error: BaseException) -> str:
    """Returns an error as a traceback's last line shows it; for a UserError its one-line message."""
    line = next(iter(str(error).splitlines()), "")
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"

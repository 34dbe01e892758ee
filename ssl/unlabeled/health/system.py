"""Writes ``system.jsonl`` to a run's folder: what the run takes of its machine, and the time of its steps."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import open_regular, read_utf8
from unlabeled.core.writing import append_line
from unlabeled.training.pretraining import Pretraining

EVERY = 10.0  # seconds between two lines (our choice)
SHARE = 1e-3  # the same as a share of the session's time, if that is longer: a long run writes fewer lines
TAIL = 4096  # bytes at the end of the file, where its last line is
GIB = 1 << 30


class SystemLog(pl.Callback):
    """Lets the first process write a line every ten seconds or less often; never stops a run.

    A line has ``step``, ``seconds`` of training up to it (all sessions), ``cpu`` (share of the machine's cores that are
    busy), ``process_cores`` (cores that this process keeps busy), ``memory_gib`` (of this process), ``machine_memory``
    (share of the machine's that is in use); on a GPU ``gpu`` (share of the time in which it computes, if ``pynvml`` is
    installed), ``gpu_memory_gib`` and ``gpu_memory`` (reserved by this process). What a machine does not tell is left
    out.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before, self._first = 0.0, 0  # seconds of earlier sessions; steps at the start of this one
        self._begun = self._written = time.monotonic()
        self._cpu, self._own = machine_cpu(), process_seconds()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = trainer.global_step
        self._before = _last_seconds(self.path) if self._first else 0.0
        self._begun = self._written = time.monotonic()
        self._cpu, self._own = machine_cpu(), process_seconds()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        now = time.monotonic()
        if now - self._written < max(EVERY, SHARE * (now - self._begun)) or pl_module.part:
            return
        if trainer.is_global_zero:
            self._write(pl_module.global_step, pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretraining)
        if trainer.is_global_zero and pl_module.global_step > self._first:
            self._write(pl_module.global_step, pl_module.device)

    def _write(self, step: int, device: torch.device) -> None:
        now = time.monotonic()
        values = {"step": step, "seconds": self._before + now - self._begun, **self._machine(now), **gpu_use(device)}
        rounded = {name: round(value, 4) for name, value in values.items() if value is not None}
        with suppress(OSError):  # must not stop the run; writing a checkpoint reports a full disk
            append_line(self.path, json.dumps(rounded))
        self._written = now

    def _machine(self, now: float) -> dict[str, float | None]:
        cpu, own, span = machine_cpu(), process_seconds(), max(1e-9, now - self._written)
        found = {
            "cpu": None if cpu is None or self._cpu is None else _share(self._cpu, cpu),
            "process_cores": (own - self._own) / span,
            "memory_gib": process_memory(),
            "machine_memory": machine_memory(),
        }
        self._cpu, self._own = cpu, own
        return found


def machine_cpu() -> tuple[float, float] | None:
    """Returns how long the cores were busy and how long they were there since the machine started; None if unknown."""
    try:
        ticks = [float(each) for each in read_utf8("/proc/stat").partition("\n")[0].split()[1:9]]
    except (OSError, ValueError):  # another system than Linux
        return None
    idle = sum(ticks[3:5])  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


def process_seconds() -> float:
    """Returns the processor time of this process, seconds."""
    spent = os.times()
    return spent.user + spent.system


def process_memory() -> float | None:
    """Returns the memory of this process that is in use, GiB; None if unknown."""
    kib = _kib("/proc/self/status").get("VmRSS")
    return None if kib is None else kib * 1024 / GIB


def machine_memory() -> float | None:
    """Returns the share of the machine's memory that is in use; None if unknown."""
    known = _kib("/proc/meminfo")
    whole, free = known.get("MemTotal"), known.get("MemAvailable")
    return None if not whole or free is None else 1 - free / whole


def gpu_use(device: torch.device) -> dict[str, float | None]:
    """Returns use and reserved memory of a GPU without waiting for it; nothing for another device."""
    if device.type != "cuda":
        return {}
    reserved, whole = torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    use = None
    with suppress(Exception):  # without pynvml, or where the driver does not tell
        use = torch.cuda.utilization(device) / 100
    return {"gpu": use, "gpu_memory_gib": reserved / GIB, "gpu_memory": reserved / whole}


def _share(before: tuple[float, float], now: tuple[float, float]) -> float | None:
    there = now[1] - before[1]
    return (now[0] - before[0]) / there if there > 0 else None


def _kib(path: str) -> dict[str, float]:
    """Returns the lines ``name: value kB`` of a file of the system; empty if it cannot be read."""
    try:
        lines = [line.split() for line in read_utf8(path).splitlines()]
        return {words[0].rstrip(":"): float(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}
    except (OSError, ValueError):
        return {}


def _last_seconds(path: Path) -> float:
    """Returns the seconds of the last whole line; 0 if there is none, or nobody can read it."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0.0
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            return float(parse_json(line)["seconds"])
    return 0.0

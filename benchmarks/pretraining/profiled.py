"""Counts what a step of a run launches by torch's profiler."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile

from unlabeled.training.run import Run

WARM, PROFILED = 3, 3  # steps


class Launches(pl.Callback):
    """Profiles a few steps: kernels, operations of the host, and copies between host and device in a step."""

    def __init__(self) -> None:
        self.steps_needed = WARM + PROFILED + 1
        self.per_step: dict[str, float] = {}
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])

    def attach(self, run: Run) -> None:
        run.trainer.callbacks.append(self)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: pl.Trainer, *others: Any) -> None:
        if trainer.global_step == WARM:
            self._profile.start()
        if trainer.global_step == WARM + PROFILED:
            self._profile.stop()
            self.per_step = {name: count / PROFILED for name, count in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        events = self._profile.events() or []  # type: ignore[no-untyped-call]
        on_device = [event for event in events if event.device_type.name == "CUDA"]
        copies = [event for event in on_device if event.name.startswith(("Memcpy", "Memset"))]
        waits = [event for event in events if "Synchronize" in event.name]
        operations = [event for event in events if event.name.startswith("aten::")]
        return {
            "kernels": len(on_device) - len(copies),
            "copies": len(copies),
            "waits": len(waits),
            "host_operations": len(operations),
        }

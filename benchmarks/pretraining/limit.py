"""How fast a run could be: its model, loss and optimizer on views that are on the device already, in turn with it."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from unlabeled.objective import AfterBackward, Batch
from unlabeled.training.faults.snapshot import Snapshot
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.run import Run


class Limit:
    """Training steps of a run's own objective, with an optimizer of its own: forward, backward, optimizer and what the
    method itself does after a step. No data, views, loop, verdict, logging.

    Steps are taken within ``with limit``, behind which the run's weights and buffers are what they were, bit for bit. A
    copy of the objective would not do: it is not compiled where the run's is.

    Args:
        module: of the run, which must have begun.
        batch: with its views, float, as the objective sees them.
    """

    def __init__(self, module: Pretraining, batch: Batch) -> None:
        self.objective, self.batch = module.objective, batch
        self.optimizer = module.optimizer_config.build(self.objective, module.images_per_step)
        self.progress, self.precision = module.progress, module.trainer.precision_plugin
        for group in self.optimizer.param_groups:
            group["lr"] = module.learning_rate
        self._others = Snapshot(self.objective)  # of buffers, and of what no optimizer trains
        self._weights: list[Tensor] = []

    def step(self) -> None:
        with self.precision.train_step_context():
            loss = self.objective(self.batch, self.progress).loss
        self.optimizer.zero_grad()
        loss.backward()
        if isinstance(self.objective, AfterBackward):
            self.objective.after_backward(self.progress)
        self.optimizer.step()
        self.objective.after_step(self.progress)

    def __enter__(self) -> None:
        self._others.keep()
        self._weights = [weight.detach().clone() for weight in self.objective.parameters()]

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        self._others.restore()
        for weight, before in zip(self.objective.parameters(), self._weights, strict=True):
            weight.copy_(before)
        self.optimizer.zero_grad()


class InTurn(pl.Callback):
    """After each block of steps stops the clock, lets the limit take as many, and goes on: A B A B in one process.

    Args:
        warm: steps of either before anything is timed.
        steps: in a block.
        repeats: blocks of the run, each between two of the limit.
        settle: steps before each block that are not counted.
        limit: made of the run and of its first batch with views.
    """

    def __init__(
        self,
        warm: int,
        steps: int,
        repeats: int,
        settle: int = 0,
        limit: Callable[[Pretraining, Batch], Limit] = Limit,
    ) -> None:
        self.warm, self.steps, self.settle, self.make_limit = warm, steps, settle, limit
        self.steps_needed = (
            warm + repeats * (settle + steps) + 1
        )  # the last writes the checkpoint, which is timed apart
        self.run: list[float] = []  # seconds of each block
        self.limit: list[float] = []  # one more than of the run
        self.watts: list[float] = []  # while the run goes on, where NVML tells
        self.view_pixels = 0  # of all views of an image
        self._own: Limit | None = None
        self._batch: Batch | None = None
        self._begun = 0.0

    def attach(self, run: Run) -> None:
        """Behind the run's own callbacks, so that what they do is within its blocks."""
        run.trainer.callbacks.append(self)  # type: ignore[attr-defined]
        remember = run.module.objective.register_forward_pre_hook(lambda _, given: self._remember(given[0]))
        self._forget = remember.remove

    def _remember(self, batch: Batch) -> None:
        self._batch = batch
        self.view_pixels = sum(view.shape[-2] * view.shape[-1] for view in batch.views)
        self._forget()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        done, device = trainer.global_step - self.warm, pl_module.device
        if done < 0 or trainer.global_step == self.steps_needed:
            return
        if done == 0:
            assert self._batch is not None
            self._own = self.make_limit(pl_module, self._batch)
        place = done % (self.settle + self.steps)
        if place == 0:
            if done:
                self._note_watts(device)  # before the device is waited for: it is still at work
                synchronise(device)
                self.run.append(time.perf_counter() - self._begun)
            self._limit_block(device)
        if place == self.settle:
            synchronise(device)
            self._begun = time.perf_counter()

    def _limit_block(self, device: torch.device) -> None:
        assert self._own is not None
        with self._own:
            for _ in range(self.settle if self.limit else self.settle + self.warm):
                self._own.step()
            synchronise(device)
            begun = time.perf_counter()
            for _ in range(self.steps):
                self._own.step()
            synchronise(device)
            self.limit.append(time.perf_counter() - begun)

    def _note_watts(self, device: torch.device) -> None:
        if device.type == "cuda":
            try:
                self.watts.append(torch.cuda.power_draw(device) / 1000)
            except Exception:  # NVML's own can only be named where it is installed
                self.watts.clear()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def efficiencies(run: list[float], limit: list[float]) -> list[float]:
    """Of each block of the run [n], by the limit's blocks [n + 1] before and after it: 1 is as fast as the limit."""
    return [(before + after) / 2 / own for own, (before, after) in zip(run, pairwise(limit), strict=True)]

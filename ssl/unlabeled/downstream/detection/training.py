"""Trains a detector by Lightning, so that a training that was killed goes on bit for bit; and measures it."""

import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.core.seeding import derive_seed
from unlabeled.downstream.detection.annotated.batches import moved
from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.annotated.jitter import Sample
from unlabeled.downstream.detection.average_precision import Detections, detections
from unlabeled.downstream.detection.recipe import DetectionRecipe
from unlabeled.errors import UserError
from unlabeled.evaluation.recipes.loop import autocast

POINTS = 200  # losses that are kept of a training
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # those that end unlabeled train too


class DetectionTraining(pl.LightningModule):
    """Trains a detector: the losses of a step are summed, and averaged over its passes.

    Args:
        network: maps images and targets to losses, as torchvision's detectors.
        recipe: the settings.
        seed: of the proposals and regions that losses are drawn from, and of stochastic depth.
        facts: plain values that each state holds, and that a state must have to go on from it.
        log: takes lines.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: DetectionRecipe,
        seed: int,
        facts: dict[str, Any],
        log: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step may have several passes
        self.network, self.recipe, self.seed, self.facts, self.told = network, recipe, seed, facts, log
        self.losses: list[tuple[int, float]] = []  # steps, from 1, and the mean loss since the one before
        self._since: list[float] = []

    def configure_optimizers(self) -> Optimizer:
        return self.recipe.build_optimizer(self.network)

    def training_step(self, batch: list[Sample], batch_idx: int) -> None:
        step, optimizer = self.global_step, self.optimizers()
        assert not isinstance(optimizer, list)
        self.recipe.set_rate(optimizer.optimizer, step)
        optimizer.zero_grad()
        loss = sum(self._pass(batch, first, step) for first in range(0, len(batch), self.recipe.at_once))
        if not math.isfinite(loss):
            raise UserError(
                f"detection.lr={self.recipe.lr:g}: the training diverged in step {step + 1:,}, its loss is {loss}: "
                "give a smaller rate, a longer warm-up or detection.clip_norm=1"
            )
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        optimizer.step()
        self._note(step + 1, loss)

    def _pass(self, batch: list[Sample], first: int, step: int) -> float:
        """Adds the gradients of some images of a step, and returns their part of its loss."""
        part = batch[first : first + self.recipe.at_once]
        torch.manual_seed(derive_seed(self.seed, 2, step, first))  # torchvision draws proposals and regions by it
        losses: dict[str, Tensor] = self.network(*moved(part, self.device))
        loss = torch.stack([each.float() for each in losses.values()]).sum() * (len(part) / len(batch))
        self.manual_backward(loss)
        return float(loss.detach())  # waits for the device, as torchvision's matching does in each pass anyway

    def _note(self, step: int, loss: float) -> None:
        self._since.append(loss)
        if step % max(1, self.recipe.steps // POINTS) and step != self.recipe.steps:
            return
        self.losses.append((step, sum(self._since) / len(self._since)))
        self._since.clear()
        if step % max(1, self.recipe.steps // 20) == 0:
            self.told(f"step {step:,} of {self.recipe.steps:,}: loss {self.losses[-1][1]:.3f}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"] = [list(each) for each in self.losses]
        checkpoint["losses_since"] = list(self._since)
        checkpoint["facts"] = self.facts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = [(int(step), float(loss)) for step, loss in checkpoint["losses"]]
        self._since = [float(each) for each in checkpoint["losses_since"]]


class StateFolder(Protocol):
    """Where states are written; ``training.checkpoints.CheckpointFolder`` is one."""

    def write(self, save: Callable[[Path], None], step_before: int | None, first: bool) -> None: ...


class States(pl.Callback):
    """Writes the state of a training every so many steps, at its end, and where a signal ends it after a step.

    Args:
        folder: for the states.
        every_n_steps: how often.
        total: steps of the training.
        log: takes lines.

    Raises:
        SystemExit: a signal ended the training; 128 and its number.
    """

    def __init__(self, folder: StateFolder, every_n_steps: int, total: int, log: Callable[[str], None]) -> None:
        self.folder, self.every_n_steps, self.total, self.told = folder, every_n_steps, total, log
        self._written: int | None = None
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            self._handlers = {number: signal.signal(number, self._remember) for number in SIGNALS}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == self._signal == signal.SIGINT:  # pressed twice: at once
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not self._signal and step % self.every_n_steps and step != self.total:
            return
        self.folder.write(lambda path: trainer.save_checkpoint(path, weights_only=False), self._written, True)
        self._written = step
        if self._signal:
            name = signal.Signals(self._signal).name
            self.told(f"{name}: the state of step {step:,} is written; the same command goes on")
            raise SystemExit(128 + self._signal)  # as shells have it

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._written = checkpoint["global_step"]


@torch.no_grad()
def detect_all(
    network: nn.Module, images: DetectionImages, device: torch.device, precision: str, log: Callable[[int], None]
) -> list[Detections]:
    """Returns what a detector finds in each image, at the image's own size.

    Args:
        network: on ``device``; it is put into evaluation mode.
        images: in their order.
        device: where.
        precision: of the forward passes.
        log: takes the number of images that are done.
    """
    network.eval()
    found = []
    for row in range(len(images)):
        image = (images.image(row).float() / 255).to(device)
        with autocast(device, precision):
            answer = network([image])[0]
        found.append(detections(answer))
        log(row + 1)
    return found

"""Small runs on the digits whose loss or gradient goes bad where a test wants it."""

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from tests.small import composed
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.data.order import GlobalOrder
from unlabeled.evaluation.features import state_hash
from unlabeled.objective import Batch, Objective, Output, Progress
from unlabeled.objectives.moco import MoCo, MoCoV3
from unlabeled.objectives.relic import ReLIC
from unlabeled.objectives.simclr import SimCLR
from unlabeled.objectives.swav import SwAV
from unlabeled.optimizers import lars, skipping
from unlabeled.training.faults import guard
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.run import Run

BATCH = 32
METHODS: dict[type[Objective], tuple[str, ...]] = {
    SimCLR: ("objective=simclr", "optimizer=sgd"),
    MoCo: ("objective=moco_v2", "objective.queue_size=150", "objective.bn_splits=2", "optimizer=sgd"),
    MoCoV3: ("objective=moco_v3", "objective.hidden_dim=16", "objective.projection_dim=8", "optimizer=lars"),
    SwAV: (
        "objective=swav",
        "objective.projection_hidden=[16]",
        "objective.projection_dim=8",
        "objective.prototypes=13",
        "objective.queue_length=64",
        "objective.queue_from_epoch=0",
        "objective.freeze_prototypes_epochs=0",
        "optimizer=lars",
    ),
    ReLIC: ("objective=relic", "objective.hidden_dim=16", "objective.projection_dim=8", "optimizer=adamw"),
}


def config_of(run_dir: Path | str, method: type[Objective], *overrides: str) -> DictConfig:
    """Eight steps of a thin network."""
    config = composed(
        "experiment=digits",
        "backbone.width=0.125",
        "views.size=8",
        f"batch_size={BATCH}",
        "max_steps=8",
        "online_knn=null",
        "log_every_n_steps=1",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "num_workers=0",
        *METHODS[method],
        "optimizer.warmup_epochs=0",
        *overrides,
    )
    config.run_dir = str(run_dir)
    return config


def run_of(config: DictConfig, *callbacks: pl.Callback) -> Run:
    """Runs to the end; ``callbacks`` come before those that write checkpoints."""
    resolved = open_run(config)
    run = build_run(config, resolved)
    for callback in callbacks:
        run.trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
    run.fit(resolved)
    return run


def image_of(step: int) -> int:
    """An image that only the batch of ``step`` shows, in the first epoch of a run with seed 0."""
    return int(GlobalOrder(1347, BATCH, 100, 0, 0, 1, next_step=lambda: 0).epoch(0)[step, 0, -1])


class _BadBackward(torch.autograd.Function):
    """The identity, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


Spoil = Callable[[Tensor, Tensor], Tensor]
# From a loss and whether it is to be bad, bool []: what it becomes.
SPOILS: dict[str, Spoil] = {
    "loss": lambda loss, bad: loss / ~bad,
    "loss alone": lambda loss, bad: loss + (torch.inf if bad else 0),  # its gradient stays finite
    "large gradient": lambda loss, bad: loss + 1e25 * bad * (loss - loss.detach()),
    "gradient": lambda loss, bad: _BadBackward.apply(loss) if bad else loss,
}


def spoil(patch: pytest.MonkeyPatch, method: type[Objective], how: str, *steps: int) -> None:
    """Let each batch that holds an image of these steps have a bad loss or gradient, by what the images are alone."""
    images, original = torch.tensor([image_of(step) for step in steps]), method.forward

    def forward(self: Objective, batch: Batch, progress: Progress) -> Output:
        output = original(self, batch, progress)
        output.loss = SPOILS[how](output.loss, torch.isin(batch.ids, images.to(batch.ids.device)).any())
        return output

    patch.setattr(method, "forward", forward)


class Untaken(pl.Callback):
    """A run that does not take some steps: puts back all that was before them. What a skipped step is held against."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        assert isinstance(pl_module, Pretraining)
        if pl_module.part == 0:
            self.state = copy.deepcopy((pl_module.state_dict(), trainer.optimizers[0].state_dict()))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        assert isinstance(pl_module, Pretraining)
        if pl_module.part == 0 and trainer.global_step - 1 in self.steps:
            pl_module.load_state_dict(self.state[0])
            trainer.optimizers[0].load_state_dict(self.state[1])


class CtrlC(pl.Callback):
    """Sends the signal of Ctrl-C in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def defer(patch: pytest.MonkeyPatch) -> None:
    """Lets a CPU have the form of the guard that is for GPUs."""
    for module in (guard, skipping, lars):
        patch.setattr(module, "few_launches", _yes)


def _yes(device: torch.device) -> bool:
    return True


class Witness(pl.Callback):
    """Which steps changed something, and which did not: weights and buffers, and the optimizer."""

    def __init__(self) -> None:
        self.changed: list[tuple[bool, bool]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        self.before = state_hash(pl_module), copy.deepcopy(trainer.optimizers[0].state_dict()["state"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        now = trainer.optimizers[0].state_dict()["state"]
        self.changed.append((state_hash(pl_module) != self.before[0], not same(now, self.before[1])))


def same(ours: Any, theirs: Any) -> bool:
    """Whether two trees of tensors and values are equal bit for bit."""
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return torch.equal(ours, theirs) if isinstance(theirs, Tensor) else bool(ours == theirs)


def state_of(run_dir: Path) -> dict[str, Any]:
    """Everything in the checkpoint of a run that later steps depend on."""
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["optimizer_states"][0]["state"]
    return {"network": checkpoint["state_dict"], "optimizer": state, "progress": checkpoint["progress"]}


def metrics_of(run_dir: Path, name: str) -> dict[int, float]:
    """By step; the last line of a step counts."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}

"""What the plan says of a step is what the run uses in it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.objectives.moco import KeyQueue
from unlabeled.objectives.swav import FeatureQueue
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.plan.plan import SHARES, make_schedule, scheduled_values_at
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.run import Run

STEPS = 20  # two epochs
COSINE = ("optimizer.warmup_epochs=0.7",)
RUNS = {  # objective: optimizer, teacher, whether that follows the weights before the step
    "simclr": (("optimizer=sgd", "optimizer.warmup_epochs=0.3", "optimizer.milestones=[0.5,1.25]"), "", True),
    "moco_v2": (("optimizer=sgd", *COSINE), "momentum_", True),
    "moco_v3": (("optimizer=adamw", *COSINE), "momentum_", True),
    "swav": (("optimizer=lars", *COSINE), "", True),
    "relicv2": (("optimizer=lars", "+optimizer.milestones=[1.0]", "optimizer.warmup_epochs=0"), "target_", False),
    "mae": (("optimizer=adamw_mae", *COSINE), "", True),
}


class Used(pl.Callback):
    """Looks at what each step uses: at the optimizer's groups, at weights before and after, at what a queue holds."""

    def __init__(self, teacher: str, before_the_step: bool, stop_at: int | None) -> None:
        self.teacher, self.before_the_step, self.stop_at = teacher, before_the_step, stop_at
        self.steps: list[dict[str, float]] = []
        self.random_keys: Tensor | None = None  # of the start

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.optimizers[0].register_step_pre_hook(self._rates)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        assert isinstance(pl_module, Pretraining)
        if pl_module.part == 0:
            self.online, self.target = self._weights(pl_module)
            self.steps.append({"step": trainer.global_step, **self._fill(pl_module.objective)})

    def _rates(self, optimizer: Optimizer, *rest: Any) -> None:
        for group in optimizer.param_groups:
            assert self.steps[-1].setdefault("learning_rate", group["lr"]) == group["lr"]
        decayed = [group["weight_decay"] for group in optimizer.param_groups if group["params"][0].ndim > 1]
        self.steps[-1]["weight_decay"] = max(decayed)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        assert isinstance(pl_module, Pretraining)
        if pl_module.part == 0 and self.teacher:
            online, target = self._weights(pl_module)
            way = (self.online if self.before_the_step else online) - self.target
            if float(way.norm()) > 1e-9:  # a teacher begins as a copy
                self.steps[-1]["momentum"] = 1 - float((target - self.target) @ way / way.square().sum())
        if trainer.global_step == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    def _fill(self, objective: nn.Module) -> dict[str, float]:
        queue = getattr(objective, "queue", None)
        if isinstance(queue, FeatureQueue):
            return {"queue_fill": int(queue.filled) / queue.embeddings.shape[1]}
        if isinstance(queue, KeyQueue):
            self.random_keys = queue.keys.clone() if self.random_keys is None else self.random_keys
            return {"queue_fill": float((queue.keys != self.random_keys).any(1).double().mean())}
        return {}

    def _weights(self, module: Pretraining) -> tuple[Tensor, Tensor]:
        return tuple(_flat(getattr(module.objective, f"{prefix}backbone")) for prefix in ("", self.teacher))  # type: ignore[return-value]


def _flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


def config_of(name: str, run_dir: Path, *overrides: str) -> DictConfig:
    config = small_run(name, run_dir, "data=digits", "batch_size=64", "accumulate=2", "num_workers=0", *overrides)
    own = {"queue_size": 1000, "queue_length": 700, "queue_from_epoch": 0.25, "momentum": 0.9}
    config.objective.update({key: value for key, value in own.items() if key in config.objective})
    config.update({"max_epochs": 2})
    return config


def train(config: DictConfig, used: Used) -> Run:
    """In float64, so that a momentum can be told from two states."""
    resolved = open_run(config)
    run = build_run(config, resolved)
    run.module.double()
    run.module.views.register_forward_hook(lambda module, given, views: [view.double() for view in views])
    run.trainer.callbacks.insert(0, used)  # type: ignore[attr-defined]
    if used.stop_at is None:
        run.fit(resolved)
        return run
    with pytest.raises(Interrupted):
        run.fit(resolved)
    used.stop_at = None
    return train(config, used)


@pytest.mark.parametrize("name", list(RUNS))
def test_every_step_uses_the_learning_rate_decay_momentum_and_queue_of_the_plan_also_after_a_stop(
    name: str, tmp_path: Path
) -> None:
    overrides, teacher, before_the_step = RUNS[name]
    used = Used(teacher, before_the_step, stop_at=7)
    run = train(config_of(name, tmp_path, *overrides), used)
    planned = [scheduled_values_at(run.module, step) for step in range(STEPS)]
    assert [step["step"] for step in used.steps] == list(range(STEPS))
    for real, wanted in zip(used.steps, planned, strict=True):
        assert real == pytest.approx({key: wanted[key] for key in real}, rel=1e-9), real["step"]
    assert {"momentum"} & planned[0].keys() == ({"momentum"} if teacher else set())
    assert sum("momentum" in step for step in used.steps) >= (
        STEPS - 2 if teacher else 0
    )  # before the first rate above 0 it is a copy
    assert len({step["learning_rate"] for step in used.steps}) >= (2 if "milestones" in str(overrides) else STEPS)
    columns = json.loads((tmp_path / "plan.json").read_text())["schedule"]
    assert columns == make_schedule(run.module)
    assert columns.pop("share") == list(SHARES)
    assert columns["step"] == [0, 0, 2, 10, 19]
    for number, step in enumerate(columns["step"]):
        assert {key: values[number] for key, values in columns.items()} == planned[step]

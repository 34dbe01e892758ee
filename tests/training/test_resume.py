"""A run that was stopped goes on as if it had not been."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.run import Run

CONF = Path(__file__).parents[2] / "conf"


class CtrlC(pl.Callback):
    """Sends the signal of Ctrl-C in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def config_of(tmp_path: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "train",
            [
                "experiment=digits",
                f"run_dir={tmp_path}",
                "backbone.width=0.125",
                "batch_size=256",
                "max_epochs=3",
                "online_knn.every_n_epochs=1",
                "log_every_n_steps=1",
                "trainer.accelerator=cpu",
                "num_workers=0",
                *overrides,
            ],
        )


def run_to_the_end(config: DictConfig, stop_at: int | None) -> Run:
    resolved = open_run(config)
    run = build_run(config, resolved)
    if stop_at is not None:
        run.trainer.callbacks.insert(0, CtrlC(stop_at))  # type: ignore[attr-defined]
        with pytest.raises(Interrupted):
            run.fit(resolved)
        return run_to_the_end(config, None)
    run.fit(resolved)
    return run


def state_of(run: Run) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run.checkpoint, weights_only=True)
    return checkpoint


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    folder = tmp_path_factory.mktemp("straight")
    run = run_to_the_end(config_of(folder), None)
    return run, (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("stop_at", "overrides"),
    [  # in an epoch, on the border of two, before the last step
        *((2, ()), (5, ()), (14, ()), (7, ("optimizer=lars",))),
        (2, ("compile=default", "max_epochs=1")),
        (2, ("optimizer=muon", "backbone=vit_tiny_small", "backbone.width=24", "backbone.depth=1", "max_epochs=1")),
    ],
)
def test_after_ctrl_c_the_same_command_ends_bit_for_bit_where_an_uninterrupted_run_does(
    straight: tuple[Run, str], tmp_path: Path, stop_at: int, overrides: tuple[str, ...]
) -> None:
    expected, metrics = straight
    if overrides:
        expected = run_to_the_end(config_of(tmp_path / "straight", *overrides), None)
        metrics = (tmp_path / "straight" / "metrics.jsonl").read_text()
    resumed = run_to_the_end(config_of(tmp_path / "stopped", *overrides), stop_at)
    assert resumed.trainer.global_step == expected.trainer.global_step == (5 if "max_epochs=1" in overrides else 15)
    assert (tmp_path / "stopped" / "metrics.jsonl").read_text() == metrics
    ours, theirs = state_of(resumed), state_of(expected)
    assert ours["progress"] == theirs["progress"]
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    for index, slots in theirs["optimizer_states"][0]["state"].items():
        for name, value in slots.items():
            assert torch.equal(ours["optimizer_states"][0]["state"][index][name], value), (index, name)


def test_a_run_with_labelled_images_beside_its_batches_goes_on_bit_for_bit(tmp_path: Path) -> None:
    paws = (
        "objective=paws",
        "views=paws_thin",
        "views.size=8",
        "objective.support.fraction=0.2",
        "objective.support.classes_per_batch=4",
        "objective.support.images_per_class=3",
        "objective.projection_hidden=[16,16]",
        "objective.projection_dim=16",
        "max_epochs=1",
        "online_knn=null",
    )
    expected = run_to_the_end(config_of(tmp_path / "straight", *paws), None)
    resumed = run_to_the_end(config_of(tmp_path / "stopped", *paws), 2)
    assert resumed.trainer.global_step == expected.trainer.global_step == 5
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("straight", "stopped")]
    assert metrics[0] == metrics[1]
    for name, value in state_of(expected)["state_dict"].items():
        assert torch.equal(state_of(resumed)["state_dict"][name], value), name


def test_a_finished_run_is_not_trained_again(straight: tuple[Run, str]) -> None:
    run, metrics = straight
    folder = run.checkpoint.parents[1]
    again = run_to_the_end(config_of(folder), None)
    assert again.trainer.global_step == 15
    assert (folder / "metrics.jsonl").read_text() == metrics
    for name, value in state_of(run)["state_dict"].items():
        assert torch.equal(again.module.state_dict()[name], value), name


def test_the_learning_rates_used_are_the_planned_ones(straight: tuple[Run, str]) -> None:
    import json

    run, metrics = straight
    lines = [json.loads(line) for line in metrics.splitlines()]
    used = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
    planned = [run.module.optimizer_config.lr_at(run.module.progress._replace(step=step), 256) for step in range(15)]
    assert used == pytest.approx(planned, rel=1e-6)


def test_checkpoint_keys_carry_no_wrapper_names(straight: tuple[Run, str]) -> None:
    keys = state_of(straight[0])["state_dict"].keys()
    assert not [key for key in keys if "_orig_mod." in key or "module." in key]
    assert all(key.startswith("objective.") for key in keys)

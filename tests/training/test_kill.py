"""``kill -9`` at any moment, the same command again, and at the end everything is as if nothing had happened."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from tests.processes import start
from tests.small import members, small_run

STEPS, EVERY, KILLS = 24, 5, 5
MOMENTS = (
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "half_written",
)


class Killed(pl.Callback):
    """``kill -9`` of this very process, at one moment of one step."""

    def __init__(self, step: int, moment: str) -> None:
        self.step, self.moment = step, moment

    def _now(self, moment: str, trainer: pl.Trainer) -> None:
        if moment == self.moment and trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now("on_train_batch_start", trainer)

    def on_before_optimizer_step(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now("on_before_optimizer_step", trainer)

    def on_before_zero_grad(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now("on_before_zero_grad", trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now("on_train_batch_end", trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, *others: Any) -> None:
        if self.moment == "half_written" and trainer.global_step >= self.step:
            torch.save = _half_written  # type: ignore[assignment]


def _half_written(content: Any, file: Any, *others: Any, **more: Any) -> None:
    """What torch.save leaves when the machine goes down."""
    target = open(file, "wb") if isinstance(file, str | Path) else file  # noqa: SIM115
    target.write(b"PK\x03\x04 half of a checkpoint")
    target.flush()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images of noise in three classes, one of them no image at all."""
    folder, draw = tmp_path_factory.mktemp("images"), random.Random(0)
    for number in range(72):
        place = folder / "train" / "abc"[number % 3] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (10, 12), draw.randbytes(360)).save(place)
    (folder / "train" / "a" / "00.png").write_bytes(b"no image")
    return folder


def compare(straight: Path, killed: Path) -> None:
    """Weights, buffers, optimizer state and metrics, bit for bit."""
    ours, theirs = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (killed, straight))
    assert ours["progress"] == theirs["progress"]
    assert ours["global_step"] == STEPS
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert [
        name for name, value in theirs["state_dict"].items() if not torch.equal(ours["state_dict"][name], value)
    ] == []
    for one, other in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert one["param_groups"] == other["param_groups"]
        for index, slots in other["state"].items():
            for name, value in slots.items():
                assert torch.equal(torch.as_tensor(one["state"][index][name]), torch.as_tensor(value)), (index, name)
    lines, others = metrics_of(straight), metrics_of(killed)
    assert others == lines
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "health/image_difference" in line] == [1, *range(6, STEPS + 1, 6)]
    assert (killed / "health.json").read_text() == (straight / "health.json").read_text()


def metrics_of(run_dir: Path) -> list[dict[str, float]]:
    """Every line; but for the one number that is a time."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "health/data_wait"} for line in lines]


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 2)])
@pytest.mark.parametrize("name", members("objective"))
def test_a_run_killed_five_times_ends_bit_for_bit_where_one_that_was_left_alone_does(
    images: Path, tmp_path: Path, name: str, workers: int, accumulate: int
) -> None:
    overrides = [f"data.path={images}", "data=folder", "data.image_size=10", f"max_steps={STEPS}", "max_epochs=null"]
    overrides += ["health.every_n_steps=6", "health.probe_every_n_steps=12", "health.images=16"]
    overrides += [f"num_workers={workers}", f"memory_gib={0 if workers else 1}", f"accumulate={accumulate}"]
    overrides += [f"checkpoint_every_n_steps={EVERY}", "checkpoint_every_n_epochs=100"]
    assert start(small_run(name, tmp_path / "straight", *overrides)).code == 0
    config, draw = small_run(name, tmp_path / "killed", *overrides), random.Random(f"{name} {workers}")
    for step in sorted(draw.sample(range(1, STEPS), KILLS)):
        death = (step, draw.choice(MOMENTS))
        ended = start(config, Killed(*death))
        assert ended.code == -signal.SIGKILL, (death, ended.output)
    assert start(config).code == 0
    compare(tmp_path / "straight", tmp_path / "killed")

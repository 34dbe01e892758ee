"""A step whose loss or gradient is not finite is as if it had not been taken, and a run of such steps ends."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from tests.faulty import (
    METHODS,
    CtrlC,
    Untaken,
    Witness,
    config_of,
    image_of,
    metrics_of,
    run_of,
    same,
    spoil,
    state_of,
)
from unlabeled.commands.build.run import build_replay
from unlabeled.errors import UserError
from unlabeled.objective import Objective
from unlabeled.objectives.moco import MoCo, MoCoV3
from unlabeled.objectives.relic import ReLIC
from unlabeled.objectives.simclr import SimCLR
from unlabeled.objectives.swav import SwAV
from unlabeled.optimizers import OptimizerConfig
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.faults.guard import NonFiniteGuard

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize(
    ("method", "how", "step"),
    [
        (SimCLR, "loss", 3),
        (SimCLR, "gradient", 0),  # before the optimizer has any state
        (MoCo, "loss", 3),
        (MoCo, "gradient", 7),  # the last step
        (MoCoV3, "loss", 3),
        (SwAV, "loss", 4),
        (SwAV, "gradient", 4),
        (ReLIC, "loss", 3),
        (ReLIC, "loss alone", 3),
    ],
)
def test_a_bad_step_changes_no_bit_and_what_follows_is_a_run_that_did_not_take_it(
    tmp_path: Path, monkeypatch: Patch, method: type[Objective], how: str, step: int
) -> None:
    run_of(config_of(tmp_path / "expected", method), Untaken(step))
    spoil(monkeypatch, method, how, step)
    witness = Witness()
    run = run_of(config_of(tmp_path / "run", method), witness)
    assert witness.changed == [(number != step, number != step) for number in range(8)]
    assert run.trainer.global_step == 8
    run_dir, expected = tmp_path / "run", tmp_path / "expected"
    assert same(state_of(run_dir), state_of(expected))
    ours, theirs = metrics_of(run_dir, "train/loss"), metrics_of(expected, "train/loss")
    assert math.isfinite(ours.pop(step + 1)) == (how == "gradient")
    assert theirs.pop(step + 1) > 0
    assert ours == theirs
    assert metrics_of(run_dir, "train/learning_rate") == metrics_of(expected, "train/learning_rate")
    assert metrics_of(run_dir, "train/skipped_steps") == {number + 1: float(number >= step) for number in range(8)}


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize(("method", "how"), [(MoCo, "loss"), (SwAV, "gradient")])
def test_one_bad_batch_of_several_voids_their_step_and_is_the_one_that_is_kept(
    tmp_path: Path, monkeypatch: Patch, method: type[Objective], how: str, part: int
) -> None:
    accumulated = ("accumulate=3", "max_steps=6")
    run_of(config_of(tmp_path / "expected", method, *accumulated), Untaken(2))
    spoil(monkeypatch, method, how, 3 * 2 + part)  # in batches
    run = run_of(config_of(tmp_path / "run", method, *accumulated))
    assert run.module.faults.skipped == 1
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "expected"))
    file = tmp_path / "run" / "faults" / "step_000003.pt"
    record = torch.load(file, weights_only=True)
    assert (record["progress"]["step"], record["progress"]["part"], record["key"]["step"]) == (2, part, 6 + part)
    assert image_of(6 + part) in record["batch"]["ids"]
    assert build_replay(str(file)).run()


@pytest.mark.parametrize("method", METHODS)
def test_a_healthy_run_has_the_same_bits_with_and_without_the_check(
    tmp_path: Path, monkeypatch: Patch, method: type[Objective]
) -> None:
    run_of(config_of(tmp_path / "watched", method))
    assert not (tmp_path / "watched" / "faults").exists()
    monkeypatch.setattr(NonFiniteGuard, "allows_step", lambda self, module: True)
    run_of(config_of(tmp_path / "plain", method))
    assert same(state_of(tmp_path / "watched"), state_of(tmp_path / "plain"))


@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_a_run_that_was_stopped_before_at_or_after_a_bad_step_keeps_the_count_and_the_bits(
    tmp_path: Path, monkeypatch: Patch, stop_at: int
) -> None:
    spoil(monkeypatch, MoCo, "loss", 1, 3)
    run_of(config_of(tmp_path / "straight", MoCo))
    with pytest.raises(Interrupted):
        run_of(config_of(tmp_path / "stopped", MoCo), CtrlC(stop_at))
    run_of(config_of(tmp_path / "stopped", MoCo))
    runs = [tmp_path / name for name in ("straight", "stopped")]
    assert same(*map(state_of, runs))
    counts = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["faults"] for run in runs]
    assert counts == [{"skipped": 2, "in_a_row": 0, "saved": 2}] * 2
    texts = [(run / "metrics.jsonl").read_text() for run in runs]
    assert texts[0] == texts[1]
    assert metrics_of(runs[1], "train/skipped_steps") == {1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2, 8: 2}


def test_so_many_in_a_row_stop_the_run_also_across_a_resume_and_a_good_step_between_them_counts_anew(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, SimCLR, "loss", 1, 2, 4, 5, 6)
    config = config_of(tmp_path, SimCLR, "max_faults_in_a_row=3")
    with pytest.raises(Interrupted):
        run_of(config, CtrlC(5))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["faults"] == {"skipped": 4, "in_a_row": 2, "saved": 3}
    with pytest.raises(UserError, match=r"stopped at step 7, .* 3 steps in a row") as stopped:
        run_of(config)
    file = tmp_path / "faults" / "step_000007.pt"
    assert f"python train.py replay={file}" in str(stopped.value)
    assert "optimizer.lr" in str(stopped.value)
    # The first three, and the one that stopped the run; the fourth left no file.
    assert [path.name for path in sorted(file.parent.iterdir())] == [f"step_00000{n}.pt" for n in (2, 3, 5, 7)]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in said] == [
        f"step {step} is skipped, {number} so far" for number, step in enumerate((2, 3, 5, 6), 1)
    ]
    assert "a loss or gradient is not finite" in said[3]


@pytest.mark.parametrize(
    ("overflow", "words"),
    [
        (4, r"stopped at step 6, weights are not finite.* before the step.*replay="),  # found in the step that follows
        (7, r"stopped after step 8: weights are not finite"),  # found when the last state is to be written
    ],
)
def test_weights_that_overflow_stop_the_run_and_never_replace_a_good_checkpoint(
    tmp_path: Path, monkeypatch: Patch, overflow: int, words: str
) -> None:
    with pytest.raises(Interrupted):
        run_of(config_of(tmp_path, SimCLR), CtrlC(2))
    good = torch.load(tmp_path / "checkpoints" / "last.ckpt")
    monkeypatch.setattr(
        OptimizerConfig, "lr_at", lambda self, progress, batch: 3e38 if progress.step == overflow else 0.0
    )
    with pytest.raises(UserError, match=words):
        run_of(config_of(tmp_path, SimCLR))
    assert same(torch.load(tmp_path / "checkpoints" / "last.ckpt"), good)


def test_large_finite_gradients_whose_length_overflows_are_taken(tmp_path: Path, monkeypatch: Patch) -> None:
    witness = Witness()
    spoil(monkeypatch, SimCLR, "large gradient", 3)
    run_of(config_of(tmp_path, SimCLR, "optimizer.lr=1e-30"), witness)
    lengths = [float(slots["momentum_buffer"].norm()) for slots in state_of(tmp_path)["optimizer"].values()]
    assert max(lengths) == math.inf
    assert metrics_of(tmp_path, "train/skipped_steps")[8] == 0
    assert witness.changed == [(True, True)] * 8


@pytest.mark.parametrize(
    ("how", "scale", "skipped", "scale_after"),
    [
        ("gradient", 1024.0, 0, 512.0),  # the scaler's business: it skips, and tries half
        ("gradient", 1.0, 1, 1.0),  # no smaller scale would help
        ("loss", 1024.0, 1, 1024.0),  # nothing that scaling can mend
        ("loss alone", 1024.0, 1, 1024.0),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])  # adamw is fused, and divides by the scale itself
def test_with_16_mixed_only_what_the_scaler_cannot_mend_is_counted(
    tmp_path: Path, monkeypatch: Patch, how: str, scale: float, skipped: int, scale_after: float, optimizer: str
) -> None:
    spoil(monkeypatch, SimCLR, how, 3)
    half, witness = Half(scale), Witness()
    run_of(config_of(tmp_path, SimCLR, f"optimizer={optimizer}"), half, witness)
    assert half.scales == [scale] * 4 + [scale_after] * 4
    assert metrics_of(tmp_path, "train/skipped_steps")[8] == skipped
    weights = [changed for _, changed in witness.changed]
    assert weights == [number != 3 for number in range(8)]
    assert witness.changed[3][0] == (skipped == 0)  # BatchNorm statistics of a step that the scaler skips are good ones


class Half(pl.Callback):
    """Gives a run the gradient scaler that Lightning has for GPUs alone, and reads its scale before each step."""

    def __init__(self, scale: float) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.scales: list[float] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", self.scaler)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        self.scales.append(self.scaler.get_scale())

"""Steps that a GPU skips by itself, and of which the host learns later, are those of the immediate form.

On a CPU the deferred form is switched on by hand, and compared with the immediate one on the same fused optimizers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faulty import METHODS, CtrlC, config_of, defer, run_of, same, spoil, state_of
from unlabeled.commands.build.run import build_replay
from unlabeled.errors import UserError
from unlabeled.objective import Objective
from unlabeled.objectives.moco import MoCo, MoCoV3
from unlabeled.objectives.relic import ReLIC
from unlabeled.objectives.simclr import SimCLR
from unlabeled.objectives.swav import SwAV
from unlabeled.optimizers import OptimizerConfig, lars
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.faults import deferred
from unlabeled.training.faults.deferred import WINDOW, DeferredVerdicts
from unlabeled.training.faults.guard import NonFiniteGuard
from unlabeled.training.run import Run

Patch = pytest.MonkeyPatch
# Twelve steps of which the first and the last are logged: steps 0 to 7 are one window, unless something reads earlier.
FEW_LINES = ("max_steps=12", "log_every_n_steps=50", "health=none")
FUSED = {"optimizer=sgd": ("+optimizer.optimizer.fused=true",)}


def run(run_dir: Path, method: type[Objective], *overrides: str, callbacks: Any = ()) -> Run:
    fused = [key for optimizer, keys in FUSED.items() if optimizer in METHODS[method] for key in keys]
    return run_of(config_of(run_dir, method, *FEW_LINES, *fused, *overrides), *callbacks)


def is_deferred(done: Run) -> bool:
    assert isinstance(done.module.faults, NonFiniteGuard)
    return done.module.faults._deferred is not None


def both(tmp_path: Path, method: type[Objective], *overrides: str) -> list[Path]:
    """The folders of an immediate and of a deferred run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lars, "few_launches", lambda device: True)  # its kernels are the same in both
        run(tmp_path / "immediate", method, *overrides)
        defer(patch)
        assert is_deferred(run(tmp_path / "deferred", method, *overrides))
    return [tmp_path / name for name in ("immediate", "deferred")]


def faults_of(run_dir: Path) -> dict[str, int]:
    counts: dict[str, int] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["faults"]
    return counts


def records_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Each file of a skipped step, without the configuration, which has the folder's name."""
    files = sorted((run_dir / "faults").glob("*"))
    return {file.name: torch.load(file, weights_only=True) | {"config": {}} for file in files}


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "health/data_wait"} for line in lines]


@pytest.mark.parametrize(
    ("method", "how", "steps", "recorded"),
    [
        (SimCLR, "gradient", (0,), (0,)),  # before the optimizer has any state
        (MoCo, "loss", (1, 3, 6), (1,)),  # a queue, BatchNorm over parts, a momentum encoder; three in one window
        (MoCoV3, "gradient", (7, 8), (7,)),  # at the end of a window, and the first of the next one
        (SwAV, "loss alone", (1, 11), (1, 11)),  # a queue that is not full yet; the last step
        (SwAV, "gradient", (4,), (4,)),  # prototypes, which after_step normalises
        (ReLIC, "loss", (0, 10), (0, 10)),
    ],
)
def test_weights_statistics_queues_optimizer_counts_and_metrics_are_those_of_the_immediate_form_bit_for_bit(
    tmp_path: Path, monkeypatch: Patch, method: type[Objective], how: str, steps: tuple[int, ...], recorded: Any
) -> None:
    spoil(monkeypatch, method, how, *steps)
    folders = both(tmp_path, method)
    immediate, late = map(state_of, folders)
    assert same(late, immediate)
    assert faults_of(folders[1]) == faults_of(folders[0])
    assert faults_of(folders[1])["skipped"] == len(steps)
    assert lines_of(folders[1]) == lines_of(folders[0])
    records, ours = map(records_of, folders)
    assert [*records] == [f"step_{step + 1:06d}.pt" for step in steps]
    assert [*ours] == [f"step_{step + 1:06d}.pt" for step in recorded]
    for name, record in ours.items():
        assert same(record, records[name]), name
    assert build_replay(str(folders[1] / "faults" / min(ours))).run()


def test_one_bad_batch_of_several_voids_their_step_and_is_the_one_that_is_kept(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    spoil(monkeypatch, MoCo, "loss", 3 * 2 + 1)  # in batches
    folders = both(tmp_path, MoCo, "accumulate=3", "max_steps=6")
    assert same(*map(state_of, folders))
    (name, record), (_, ours) = (next(iter(records_of(folder).items())) for folder in folders)
    assert (name, ours["progress"]["part"]) == ("step_000003.pt", 1)
    assert same(ours, record)


def test_what_the_monitor_writes_of_a_bad_step_is_the_same(tmp_path: Path, monkeypatch: Patch) -> None:
    spoil(monkeypatch, ReLIC, "gradient", 3, 4)
    watched = ("health=watch", "health.every_n_steps=2", "health.probe_every_n_steps=4", "health.images=64")
    folders = both(tmp_path, ReLIC, *watched, "max_steps=6")
    ours, theirs = map(lines_of, folders)
    assert ours == theirs
    assert [line["step"] for line in ours if "health/gradient_norm/backbone" in line] == [1, 2, 6]


def test_what_is_said_has_the_right_step_and_count(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, SimCLR, "loss", 1, 4, 10)
    defer(monkeypatch)
    run(tmp_path, SimCLR)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    heads = [line.split(":")[0] for line in said]
    assert heads == [f"step {step} is skipped, {number} so far" for number, step in enumerate((2, 5, 11), 1)]
    for number, step in ((0, 2), (2, 11)):
        assert said[number].endswith(f"; python train.py replay={tmp_path}/faults/step_{step:06d}.pt")
    assert said[1].endswith(": a loss or gradient is not finite")


def test_so_many_in_a_row_stop_the_run_over_windows_and_a_resume_with_the_first_of_its_window(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    spoil(monkeypatch, SimCLR, "loss", 1, 2, 4, 5, 6)
    defer(monkeypatch)
    with pytest.raises(Interrupted):
        run(tmp_path, SimCLR, "max_faults_in_a_row=3", callbacks=[CtrlC(5)])
    assert faults_of(tmp_path) == {"skipped": 4, "in_a_row": 2, "saved": 3}
    with pytest.raises(UserError, match=r"stopped at step 7, .* 3 steps in a row.*replay=.*step_000007.pt"):
        run(tmp_path, SimCLR, "max_faults_in_a_row=3")
    assert [*records_of(tmp_path)] == ["step_000002.pt", "step_000007.pt"]
    with pytest.raises(UserError, match=r"stopped at step 7, .* 3 steps in a row.*replay=.*step_000002.pt"):
        run(tmp_path / "at once", SimCLR, "max_faults_in_a_row=3")


def test_a_run_that_is_stopped_between_two_bad_steps_keeps_the_counts_and_the_bits(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    spoil(monkeypatch, MoCo, "loss", 1, 5)
    defer(monkeypatch)
    run(tmp_path / "straight", MoCo)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", MoCo, callbacks=[CtrlC(3)])
    run(tmp_path / "stopped", MoCo)
    runs = [tmp_path / name for name in ("straight", "stopped")]
    assert same(*map(state_of, runs))
    assert faults_of(runs[0]) == faults_of(runs[1]) == {"skipped": 2, "in_a_row": 0, "saved": 2}
    assert lines_of(runs[0]) == lines_of(runs[1])


def test_weights_that_overflow_stop_the_run_and_never_replace_a_good_checkpoint(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    defer(monkeypatch)
    with pytest.raises(Interrupted):
        run(tmp_path, SimCLR, callbacks=[CtrlC(2)])
    good = torch.load(tmp_path / "checkpoints" / "last.ckpt")
    monkeypatch.setattr(OptimizerConfig, "lr_at", lambda self, progress, batch: 3e38 if progress.step == 4 else 0.0)
    with pytest.raises(UserError, match=r"stopped at step 6, weights are not finite.* before the step.*replay="):
        run(tmp_path, SimCLR)
    assert same(torch.load(tmp_path / "checkpoints" / "last.ckpt"), good)


@pytest.mark.parametrize(("step", "log_every"), [(3, 50), (6, 4)])
def test_the_host_learns_of_a_bad_step_within_eight_and_before_it_writes(
    tmp_path: Path, monkeypatch: Patch, step: int, log_every: int
) -> None:
    steps = list[tuple[int, int]]()  # that are read, and the step after which
    original = DeferredVerdicts.read

    def read(self: DeferredVerdicts, everything: bool) -> Any:
        found = original(self, everything)
        steps.extend((each.step, max(number for number, *_ in [*self._unread, *found])) for each in found)
        return found

    monkeypatch.setattr(DeferredVerdicts, "read", read)
    spoil(monkeypatch, SimCLR, "loss", step)
    defer(monkeypatch)
    run(tmp_path, SimCLR, f"log_every_n_steps={log_every}")
    assert [number for number, _ in steps] == [*range(12)]
    late = dict(steps)
    assert late[step] - step < WINDOW
    logged = [number for number in range(12) if number == 11 or (number + 1) % log_every == 0]
    assert all(late[number] < written for written in logged for number in range(written))


def test_of_large_batches_two_steps_are_held_at_most(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(deferred, "HELD", 1000)
    held = []
    original = DeferredVerdicts.read

    def read(self: DeferredVerdicts, everything: bool) -> Any:
        held.append(len(self._unread))
        return original(self, everything)

    monkeypatch.setattr(DeferredVerdicts, "read", read)
    defer(monkeypatch)
    run(tmp_path, SimCLR, "max_steps=6")
    assert max(held) == 2


def test_an_optimizer_that_cannot_skip_by_itself_waits_in_each_step_and_it_is_said(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, SimCLR, "loss", 1)
    defer(monkeypatch)
    done = run_of(config_of(tmp_path, SimCLR, "max_steps=2", "+optimizer.optimizer.fused=false"))
    assert not is_deferred(done)
    assert done.module.faults.skipped == 1
    assert "each step waits for cpu, to check that its loss is finite: SGD is not fused" in capsys.readouterr().out


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", [MoCo, SwAV, ReLIC])  # SGD, LARS, AdamW
def test_on_a_gpu_a_bad_step_is_skipped_and_recorded(
    tmp_path: Path, monkeypatch: Patch, method: type[Objective]
) -> None:
    spoil(monkeypatch, method, "loss", 3)
    done = run(tmp_path, method, "trainer.accelerator=gpu", "views.compile=false")
    assert is_deferred(done)
    assert faults_of(tmp_path) == {"skipped": 1, "in_a_row": 0, "saved": 1}
    (record,) = records_of(tmp_path).values()
    assert (record["progress"]["step"], record["named"]) == (3, "the loss of finite outputs is inf")
    assert all(value.isfinite().all() for value in state_of(tmp_path)["network"].values())

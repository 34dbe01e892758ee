"""``state.json``: a run tells where it is and how it ended, to whoever looks on."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig

from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.health import heartbeat, system
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.run_lock import TakenOver

STEPS = 6


class Meddling(pl.Callback):
    """Before step ``at`` ends it reads ``state.json``, and does what is asked for."""

    def __init__(self, path: Path, at: int = 0, error: BaseException | None = None, number: int = 0) -> None:
        self.path, self.at, self.error, self.number = path, at, error, number
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.seen.append(json.loads(self.path.read_text()))
        if trainer.global_step != self.at:
            return
        if self.error is not None:
            raise self.error
        signal.raise_signal(self.number)


class Clock:
    """Each look at it takes a second: one a step, and one a file."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return float(self.looks)

    time = staticmethod(time.time)


def config(folder: Path, *overrides: str) -> DictConfig:
    steps = ["max_epochs=null", f"max_steps={STEPS}", "num_workers=0"]
    return small_run("simclr", folder, "backbone.width=0.25", *steps, *overrides)


def train(folder: Path, *overrides: str, **meddling: Any) -> list[dict[str, Any]]:
    """A run; what it said of itself step by step, and at last."""
    composed = config(folder, *overrides)
    resolved = open_run(composed)
    run = build_run(composed, resolved, "unlabeled train name=x")
    callback = Meddling(folder / "state.json", **meddling)
    run.trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
    try:
        run.fit(resolved)
    finally:
        callback.seen.append(json.loads(callback.path.read_text()))
        SAID[folder] = callback.seen
    return callback.seen


SAID: dict[Path, list[dict[str, Any]]] = {}


def test_a_run_says_where_it_is_step_by_step_and_at_last_that_it_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    monkeypatch.setattr(heartbeat, "time", Clock())
    said = train(tmp_path)
    assert [each["step"] for each in said] == [0, 0, 2, 3, 4, 5, STEPS]  # the first step is not worth a file
    assert [each["state"] for each in said] == ["running"] * STEPS + ["finished"]
    last = said[-1]
    assert last["total_steps"] == STEPS
    assert last["steps_per_epoch"] == 1347 // 16  # training images of the digits
    assert last["seconds_left"] == 0
    # the second step ended a second after the first, the third two seconds after the second
    assert [each["seconds_per_step"] for each in said[:4]] == [None, None, 1.0, 1.5]
    assert (said[3]["images_per_second"], said[3]["seconds_left"]) == (round(16 / 1.5, 1), 3 * 1.5)
    assert (last["pid"], last["host"], last["sessions"], last["error"]) == (os.getpid(), socket.gethostname(), 1, None)
    assert last["command"] == "unlabeled train name=x"
    assert time.time() - 60 < last["started"] < last["updated"] < time.time() + 1
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_is_written_no_more_often_than_every_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    replace = os.replace

    def counted(source: Any, target: Any) -> None:
        written.extend([str(target)] * str(target).endswith("state.json"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", counted)
    monkeypatch.setattr(heartbeat, "EVERY", 60.0)
    train(tmp_path)
    assert len(written) == 2  # at the start and at the end


def test_after_a_signal_it_says_interrupted_and_the_same_command_counts_one_session_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "EVERY", 0.0)
    with pytest.raises(Interrupted):
        train(tmp_path, at=3, number=signal.SIGTERM)
    first = SAID[tmp_path][-1]
    assert (first["state"], first["step"], first["error"], first["sessions"]) == ("interrupted", 3, None, 1)
    again = train(tmp_path)
    assert (again[0]["state"], again[0]["step"], again[0]["sessions"]) == ("running", 3, 2)
    assert (again[-1]["state"], again[-1]["step"], again[-1]["sessions"]) == ("finished", STEPS, 2)
    lines = [json.loads(line) for line in (tmp_path / "system.jsonl").read_text().splitlines()]
    steps, seconds = [line["step"] for line in lines], [line["seconds"] for line in lines]
    assert set(range(1, STEPS + 1)) - {3} <= set(steps)  # the signal came before the third step's line
    assert steps == sorted(steps)
    assert seconds == sorted(seconds)  # those of the second session begin where the first ended
    assert all(0 <= line.get("cpu", 0) <= 1 and line["process_cores"] >= 0 for line in lines)
    if sys.platform == "linux":
        assert all(0.01 < line["memory_gib"] < 100 and 0 < line["machine_memory"] < 1 for line in lines)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("mat1 and mat2 do not fit\nsecond line"), "RuntimeError: mat1 and mat2 do not fit"),
        (UserError("temperature=0: must be more"), "temperature=0: must be more"),
    ],
)
def test_an_error_is_told_by_its_first_line(tmp_path: Path, error: Exception, said: str) -> None:
    with pytest.raises(type(error)):
        train(tmp_path, at=2, error=error)
    last = SAID[tmp_path][-1]
    assert (last["state"], last["error"], last["step"]) == ("failed", said, 2)


def test_a_process_whose_folder_was_taken_leaves_the_file_to_the_other(tmp_path: Path) -> None:
    with pytest.raises(TakenOver):
        train(tmp_path, at=2, error=TakenOver("was taken over by process 7"))
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "running"


class PlanOnly(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = True


def test_where_nothing_is_trained_nothing_is_said(tmp_path: Path) -> None:
    composed = config(tmp_path)
    resolved = open_run(composed)
    run = build_run(composed, resolved)
    run.trainer.callbacks.insert(0, PlanOnly())  # type: ignore[attr-defined]
    run.fit(resolved)
    assert run.trainer.global_step == 0
    assert not (tmp_path / "state.json").exists()


def test_the_command_of_a_finished_run_leaves_it_finished(tmp_path: Path) -> None:
    last = train(tmp_path)[-1]
    composed = config(tmp_path)
    resolved = open_run(composed)
    build_run(composed, resolved).fit(resolved)
    assert json.loads((tmp_path / "state.json").read_text()) == last
    assert last["state"] == "finished"


def test_a_folder_that_cannot_be_written_to_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beat = heartbeat.Heartbeat(tmp_path / "no such folder" / "state.json")
    monkeypatch.setattr("unlabeled.commands.build.trainer.Heartbeat", lambda *given: beat)
    monkeypatch.setattr("unlabeled.commands.build.trainer.SystemLog", lambda path: system.SystemLog(beat.path))
    composed = config(tmp_path)
    resolved = open_run(composed)
    run = build_run(composed, resolved)
    run.fit(resolved)
    assert run.trainer.global_step == STEPS
    assert not (tmp_path / "state.json").exists()

"""A signal before the first step or during the evaluation ends a command with a line; one within the training saves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import ENVIRONMENT
from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.train.stopping import SIGNALS, stoppable
from unlabeled.commands.train.train import train
from unlabeled.errors import UserError
from unlabeled.training.run_lock import RunLock

TINY = (
    *("experiment=digits", "max_epochs=null", "max_steps=2", "batch_size=64", "backbone.width=0.125", "pictures=null"),
    *("online_knn=null", "num_workers=0", "probe=knn", "probe.knn.k=[20]", "trainer.accelerator=cpu"),
)


def _get(number: int) -> None:
    with stoppable(lambda number: f"{number} is kept"):
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_becomes_one_line_and_the_exit_status_of_shells(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(SystemExit) as stopped:
        _get(number)
    assert stopped.value.code == 128 + number
    assert capsys.readouterr().out == f"\n{number.name}: {int(number)} is kept\n"
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_process_that_was_forked_meanwhile_ends_by_the_signal_and_says_nothing() -> None:
    with stoppable(lambda number: "never"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


WHILE = "SIGTERM: stopped while it is evaluated; the trained state is {state}; the same command goes on:"
BEFORE = "SIGTERM: stopped before the first step; the same command goes on:"


def _stop_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object, **named: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr(place, stop)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (
            "unlabeled.commands.build.run.build_data",
            "SIGTERM: stopped before the first step; the same command goes on:",
        ),
        ("unlabeled.training.plan.callback.make_plan", BEFORE),
        (
            "unlabeled.evaluation.evaluate.evaluate",
            "SIGTERM: stopped while it is evaluated; the trained state is {state}",
        ),
    ],
)
def test_a_signal_outside_of_the_steps_says_what_is_kept_and_the_same_command_goes_on(
    place: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("train", [*TINY, f"run_dir={tmp_path}/run"])
    state = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patch:
        _stop_at(place, patch)
        with pytest.raises(SystemExit) as stopped:
            train(config, "the command")
    assert stopped.value.code == 143
    printed = capsys.readouterr().out
    assert f"\n{line.format(state=state)}" in printed
    assert printed.endswith("the same command goes on:\n  the command\n")
    assert state.exists() == ("evaluate" in place)
    RunLock(tmp_path / "run").release()  # nobody holds it
    if "evaluate" in place:
        assert train(config, "the command", lambda line: None).rows


def test_a_signal_while_the_command_starts_is_one_line(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from unlabeled.commands.train import picks, train;"
        "picks.look = lambda *given: os.kill(os.getpid(), signal.SIGTERM);"
        "sys.argv = ['/bin/unlabeled', 'train', 'data=./']; train.main(['data=./'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert done.stdout == "\nSIGTERM: stopped before the first step; the same command starts it\n"


@pytest.mark.parametrize("asked", ["plan_only=true", "preview=8"])
def test_plan_and_preview_write_nothing_beside_a_process_that_trains_the_run(asked: str, tmp_path: Path) -> None:
    code = "import time; from unlabeled.training.run_lock import RunLock; from pathlib import Path\n"
    code += f"RunLock(Path({str(tmp_path / 'run')!r})); print('held', flush=True); time.sleep(120)"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = sorted((tmp_path / "run").iterdir())
        try:
            with pytest.raises(UserError, match="is at work on this run; wait for its end, or give another name"):
                train(composed("train", [*TINY, f"run_dir={tmp_path}/run", asked]), "x")
            assert sorted((tmp_path / "run").iterdir()) == before
        finally:
            other.kill()

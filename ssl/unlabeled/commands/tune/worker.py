"""The process that trains trials, one after the other, and reports each score to the search."""

import contextlib
import io
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.checks.former_run import open_run
from unlabeled.commands.tune.history import State
from unlabeled.core.writing import make_folder, write_atomic
from unlabeled.errors import UserError

LABELLED = 20  # of which the online k-NN classifies a tenth, and at least two
Report = Callable[[int, float], bool]  # epoch and top-1 → whether the trial goes on


class _Pruned(SystemExit):
    """The search has ended the trial. As for every run that is stopped from outside, its state is "interrupted"."""


def work(connection: Connection, gpu: str | None) -> None:
    """Takes (overrides, folder) and sends ("score", epoch, top-1) as they come, then (state, reason, seconds).

    Args:
        connection: to the search, which answers each score by whether the trial goes on; None ends the process.
        gpu: what ``CUDA_VISIBLE_DEVICES`` is to be; None: as it is.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch looks for devices

    def report(epoch: int, top1: float) -> bool:
        try:
            connection.send(("score", epoch, top1))
            return bool(connection.recv())
        except (EOFError, OSError) as error:
            raise KeyboardInterrupt from error

    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):  # the search was stopped, or is gone
        while (job := connection.recv()) is not None:
            begun = time.monotonic()
            overrides, folder = job
            state, reason = train_trial(overrides, folder, report)
            connection.send((state, reason, time.monotonic() - begun))


def train_trial(overrides: list[str], folder: str, report: Report) -> tuple[State, str]:
    """Trains one trial into ``folder``; what it prints is in its ``log.txt``. Returns its state, and why it failed."""
    make_folder(Path(folder))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        state, reason = _outcome(overrides, report)
    shutil.rmtree(Path(folder) / "checkpoints", ignore_errors=True)  # of no use, and large
    write_atomic(Path(folder) / "log.txt", printed.getvalue())
    return state, reason


def _outcome(overrides: list[str], report: Report) -> tuple[State, str]:
    from unlabeled.training.checkpointing import Interrupted

    try:
        _train(overrides, report)
    except _Pruned:
        return "pruned", ""
    except Interrupted as stop:  # Ctrl-C reaches every process of a terminal
        raise KeyboardInterrupt from stop
    except UserError as error:
        return "failed", " ".join(str(error).split())
    except Exception as error:  # out of memory, say: the search goes on with other values
        traceback.print_exc()
        return "failed", " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return "ended", ""


def _train(overrides: list[str], report: Report) -> None:
    from unlabeled.commands.build.run import build_run

    config = composed("train", overrides)
    resolved = open_run(config)
    with contextlib.closing(build_run(config, resolved)) as run:
        if int((run.data.splits.train.labels >= 0).sum()) < LABELLED:
            raise UserError(f"data: a search is judged by k-NN and needs {LABELLED} labelled training images")
        _listen(run.trainer, report)
        run.fit(resolved)


def _listen(trainer: Any, report: Report) -> None:
    """Reports every score of the online k-NN. Raises UserError if the run has none."""
    from unlabeled.training.online_knn import OnlineKNN

    def heard(epoch: int, top1: float) -> None:
        if not report(epoch, top1):
            raise _Pruned

    for callback in _online(trainer, OnlineKNN):
        callback.listeners.append(heard)


def _online(trainer: Any, kind: type[Any]) -> Iterator[Any]:
    found = [each for each in trainer.callbacks if isinstance(each, kind)]
    if not found:
        raise UserError("online_knn=null: a search is judged by it; leave it out")
    yield from found

"""The way of an image from the loader to the loss: few functions, and docs/architecture.md lists them all."""

import ast
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import pytorch_lightning as pl
from rich.console import Console

import unlabeled
from tests.small import composed, small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.data.loaders import ArrayLoader
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.progress_bar import RunProgress

PACKAGE = Path(unlabeled.__path__[0])
PAGE = PACKAGE.parents[1] / "docs" / "architecture.md"
MOST = {"simclr": 30, "moco_v2": 32}  # functions of ours


class Enough(Exception):
    pass


class Stop(pl.Callback):
    """Ends a run after step 4: the second epoch has begun, and what is done at the end of a run is not."""

    def on_train_batch_end(self, trainer: pl.Trainer, *others: Any) -> None:
        if trainer.global_step == 4:
            raise Enough


class Trace:
    """The functions of ours that each batch passes, from its loader's turn to the loss of the step."""

    def __init__(self) -> None:
        self.batches: list[list[CodeType]] = []  # in the order of their first call
        self._open = False
        self._stack: list[CodeType] = []  # that is being called, Python's and torch's too
        self._hidden = 0  # how many of them are operations on images, or the guard

    @contextmanager
    def running(self) -> Iterator[None]:
        sys.setprofile(self._event)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self._call(frame.f_code)
        elif event == "return" and self._stack:
            code = self._stack.pop()
            self._hidden -= _is_hidden(code)
            if code is Pretraining.training_step.__code__:
                self._open = False

    def _call(self, code: CodeType) -> None:
        self._stack.append(code)
        self._hidden += _is_hidden(code)
        if code is ArrayLoader.__iter__.__code__ and not self._open:
            self._open = True
            self.batches.append([])
        if self._open and not self._hidden and code.co_filename.startswith(str(PACKAGE)):
            self.batches[-1].append(code)


def _is_hidden(code: CodeType) -> bool:
    """Whether it is an operation on images, or the guard: what is called within is not counted either."""
    if not code.co_filename.startswith(str(PACKAGE)):
        return False
    room, operation = Path(code.co_filename).parent, code.co_qualname.split(".")[-1] in ("sample", "apply")
    return room.name == "faults" or (room.name == "views" and operation)


def path_of(name: str, run_dir: Path) -> list[tuple[str, str]]:
    """File and function of each stop in the longest of some steps that are neither logged nor looked at.

    What the comprehensions, lambdas and functions within a function do is its own doing.
    """
    config = small_run(name, run_dir, "data=digits", "batch_size=512", "max_steps=100", "log_every_n_steps=10")
    if name == "moco_v2":
        config.views.mean, config.views.std = [0.5] * 3, [0.25] * 3
    for key in ("pictures", "online_knn"):  # as in every run
        config[key] = composed()[key]
    run, trace = build_run(config, open_run(config)), Trace()
    run.trainer.callbacks.append(Stop())  # type: ignore[attr-defined]
    with trace.running(), pytest.raises(Enough):
        run.fit({})
    paths = [
        list(dict.fromkeys((code.co_filename, code.co_qualname.split(".<locals>")[0]) for code in codes))
        for codes in trace.batches[1:]
    ]
    assert len(paths) >= 3
    return [(str(Path(file).relative_to(PACKAGE)), function) for file, function in max(paths, key=len)]


def listed(name: str) -> list[tuple[str, str]]:
    """File and function of each row between the page's marks."""
    text = PAGE.read_text().split(f"<!-- path: {name} -->")[1].split("<!-- end -->")[0]
    return re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize("name", MOST)
def test_an_image_passes_the_functions_that_the_page_lists_and_no_more_than_the_bound(
    name: str, tmp_path: Path
) -> None:
    path = path_of(name, tmp_path)
    print("\n".join(f"{file}: {function}" for file, function in path))
    assert len(path) <= MOST[name]
    assert listed(name) == path


def test_every_function_of_the_page_is_in_the_file_that_it_names() -> None:
    rows = re.findall(r"^\| `([^`]+\.py)` \| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 40
    for file, function in rows:
        body = ast.parse((PACKAGE / file).read_text()).body
        for part in function.split("."):
            found = [each for each in body if getattr(each, "name", None) == part]
            assert found, (file, function)
            body = getattr(found[0], "body", [])


class NeverRead:
    """A loss on a GPU that has not computed it yet."""

    def __float__(self) -> float:
        raise AssertionError("the host waits for the GPU")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_reads_no_loss_in_a_step_that_prints_none(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run("simclr", tmp_path, "data=digits", "max_epochs=null", "max_steps=30", "log_every_n_steps=50")
    run = build_run(config, open_run(config))
    bar = next(each for each in run.trainer.callbacks if isinstance(each, RunProgress))  # type: ignore[attr-defined]
    bar.console = Console(force_terminal=terminal, file=io.StringIO())
    bar.on_train_start(run.trainer, run.module)
    monkeypatch.setattr(run.module, "is_due", lambda every_n_epochs: False)
    monkeypatch.setattr(run.module, "is_written", lambda step: False)
    bar.on_train_batch_end(run.trainer, run.module, {"loss": NeverRead()}, None, 1)
    bar.teardown(run.trainer, run.module, "fit")
    run.close()

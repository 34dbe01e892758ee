"""Pretrain a backbone without labels, then evaluate it: ``unlabeled train experiment=digits``."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from unlabeled.commands.arguments.data_path import data_path
from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.checks.former_run import open_run
from unlabeled.commands.config import (
    check_asked,
    check_command,
    check_no_other_overrides,
    conf_folder,
    is_sweep,
    launch,
    one_line_errors,
)
from unlabeled.commands.importing import heavy_imports
from unlabeled.commands.train.stopping import stoppable
from unlabeled.core.places import NEWEST

if TYPE_CHECKING:
    from unlabeled.evaluation.evaluate_probes import Row
    from unlabeled.training.run import Run


@dataclass(frozen=True)
class Trained:
    """What came of a command: nothing is evaluated where there is no probe or no test split."""

    run_dir: Path
    rows: "list[Row]" = field(default_factory=list)  # of the report
    pages: list[Path] = field(default_factory=list)  # of a run without labelled test images
    ended: bool = False  # whether this process has trained to the end and is the one that says so


def train(config: DictConfig, command: str, log: Callable[[str], None] = print) -> Trained:
    """One run: go on where it stopped, train to the end, evaluate the last state; or only look at views or a bad step.

    Args:
        config: as composed from ``conf/train.yaml``.
        command: that goes on with it.
        log: is given each line about the evaluation.

    Raises:
        SystemExit: stopped by a signal, after the state was written; a replay or a plan has ended.
    """
    if config.replay is not None:
        check_no_other_overrides("replay")
    check_command(config, conf_folder() / "train.yaml")
    check_asked()
    run_dir = Path(config.run_dir)
    resolved = open_run(config) if config.replay is None else {}
    with heavy_imports():  # so late that --help, a mistyped key and a wrong value are answered at once
        from unlabeled.commands.build.run import build_preview, build_replay, build_run
        from unlabeled.training.run_lock import RunLock

    if config.replay is not None:
        raise SystemExit(0 if build_replay(config.replay).run() else 1)
    if config.preview is not None:
        with closing(RunLock(run_dir)):  # not beside a process that trains this run
            page, picture = build_preview(config).write(run_dir / "preview")
        print(f"nothing is trained; the views are in {page} and {picture}")
        return Trained(run_dir)
    with stoppable(lambda number: _kept(run_dir, number, command)):
        run = build_run(config, resolved, command)
        with closing(run):  # its folder is for another process then
            if config.plan_only:
                raise SystemExit(0 if run.plan() or not run.trainer.is_global_zero else 1)
            return _train(config, resolved, run, command, log)


def _train(
    config: DictConfig, resolved: dict[str, Any], run: "Run", command: str, log: Callable[[str], None]
) -> Trained:
    """All steps, then the evaluation."""
    from unlabeled.commands.build.run import build_probes
    from unlabeled.commands.train.ending import scores, training_of
    from unlabeled.training.checkpointing import Interrupted, requeue
    from unlabeled.training.loggers import log_end, wait_for_scores

    run_dir = Path(config.run_dir)
    evaluated = bool(build_probes(config)) and run.data.splits.test is not None
    if evaluated:
        wait_for_scores(run.trainer.loggers)
    try:
        run.fit(resolved)
    except Interrupted as stop:
        if run.trainer.is_global_zero:
            again = requeue(stop.number) or f"the same command goes on from there:\n  {command}"
            print(f"stopped after step {run.trainer.global_step}; {again}")
        raise SystemExit(128 + stop.number) from None
    if not run.trainer.is_global_zero:
        return Trained(run_dir)
    if not run.module.steps_taken:
        log(f"{run_dir}: the run was finished already, at step {run.trainer.global_step:,}; no step is added")
    rows, pages = list["Row"](), list[Path]()
    if evaluated:
        rows = _evaluate(config, run, command, log)
    elif run.data.splits.test is None and config.explore_images:
        pages = _look_through(config, run, command, log)
    else:
        log(f"no probe, or no test split: nothing is evaluated; the trained state is {run.checkpoint}")
    speed = {f"speed/{key}": value for key, value in training_of(run_dir).items() if key == "images_per_second"}
    log_end(run.trainer.loggers, scores(rows), speed, run.module.progress)
    return Trained(run_dir, rows, pages, ended=True)


def _evaluate(config: DictConfig, run: "Run", command: str, log: Callable[[str], None]) -> "list[Row]":
    from unlabeled.commands.build.evaluation import build_evaluation
    from unlabeled.distributed import local_only
    from unlabeled.evaluation.evaluate import evaluate
    from unlabeled.weights import read_checkpoint

    def kept(number: int) -> str:
        return f"stopped while it is evaluated; the trained state is {run.checkpoint}; {_go_on(number, command)}"

    with stoppable(kept), local_only():
        evaluation = build_evaluation(config, run.data, config.trainer.accelerator)
        return evaluate(evaluation, read_checkpoint(run.checkpoint), Path(config.run_dir) / "report", command, log)


def _look_through(config: DictConfig, run: "Run", command: str, log: Callable[[str], None]) -> list[Path]:
    from unlabeled.commands.features.without_labels import write_pages
    from unlabeled.commands.train.ending import warnings_of
    from unlabeled.distributed import local_only

    def kept(number: int) -> str:
        return f"stopped while its pages are made; the trained state is {run.checkpoint}; {_go_on(number, command)}"

    with stoppable(kept), local_only():
        return write_pages(config, run.data, run.checkpoint, command, warnings_of(Path(config.run_dir)), log)


def _kept(run_dir: Path, number: int, command: str) -> str:
    """What a signal says that comes before the first step of this process, or while a run ends."""
    state = run_dir / NEWEST
    what = f"stopped; the state is {state}" if state.exists() else "stopped before the first step"
    return f"{what}; {_go_on(number, command)}"


def _go_on(number: int, command: str) -> str:
    from unlabeled.training.checkpointing import requeue

    return requeue(number) or f"the same command goes on:\n  {command}"


def job(config: DictConfig) -> float | None:
    """Train, and say what came of it; returns what a sweeper maximises."""
    trained = train(config, typed_command())
    if trained.ended:
        from unlabeled.commands.train.ending import score, tell

        tell(trained.run_dir, trained.rows, print, is_sweep(), trained.pages)
        return score(trained.rows)
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; its ``arguments`` are those that were typed unless others are given.

    Of ``data=PATH`` alone the rest is picked, and the whole command said.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with stoppable(lambda number: "stopped before the first step; the same command starts it"):
        with one_line_errors(conf_folder(), "train", given):
            whole = _completed(given)
        launch("train", job, whole)


def _completed(arguments: list[str]) -> list[str]:
    if data_path(arguments) is None:
        return arguments
    from unlabeled.commands.train.picks import completed

    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process says it
        return completed(arguments, lambda line: None)
    whole = completed(arguments)
    shown = [each for each in whole if not each.startswith(("plan_only=", "preview="))]
    print(f"the whole command, with what was picked:\n  {typed_command(shown)}\n")
    return whole


def plan(arguments: Sequence[str]) -> None:
    """``unlabeled plan``: what a training would do, and nothing else."""
    main([*arguments, "plan_only=true"])


def preview(arguments: Sequence[str]) -> None:
    """``unlabeled preview``: the views of eight images, or of as many as ``preview=`` says."""
    given = any(argument.startswith("preview=") for argument in arguments)
    main([*arguments] if given else [*arguments, "preview=8"])

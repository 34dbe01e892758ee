"""Pretrain a backbone without labels, then evaluate it: ``unlabeled train experiment=digits``."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from unlabeled.evaluation.evaluate_probes import Row


@dataclass(frozen=True)
class Trained:
    """What came of a command: nothing is evaluated where there is no probe or no test split."""

    run_dir: Path
    rows: "list[Row]" = field(default_factory=list)  # of the report
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
    check_command(config, conf_folder() / "train.yaml")
    if config.replay is not None:
        check_no_other_overrides("replay")
    else:
        check_asked()
    run_dir = Path(config.run_dir)
    resolved = open_run(config) if config.replay is None else {}
    with heavy_imports():  # so late that --help, a mistyped key and a wrong value are answered at once
        from unlabeled.commands.build.evaluation import build_evaluation
        from unlabeled.commands.build.run import build_preview, build_probes, build_replay, build_run
        from unlabeled.commands.train.ending import scores, training_of
        from unlabeled.distributed import local_only
        from unlabeled.evaluation.evaluate import evaluate
        from unlabeled.training.checkpointing import Interrupted, requeue
        from unlabeled.training.loggers import log_end, wait_for_scores
        from unlabeled.weights import read_checkpoint

    if config.replay is not None:
        raise SystemExit(0 if build_replay(config.replay).run() else 1)
    if config.preview is not None:
        page, picture = build_preview(config).write(run_dir / "preview")
        print(f"nothing is trained; the views are in {page} and {picture}")
        return Trained(run_dir)
    run = build_run(config, resolved)
    if config.plan_only:
        raise SystemExit(0 if run.plan() or not run.trainer.is_global_zero else 1)
    evaluated = bool(build_probes(config)) and run.data.splits.test is not None
    if evaluated:
        wait_for_scores(run.trainer.loggers)
    with closing(run):  # its folder is for another process then
        try:
            run.fit(resolved)
        except Interrupted as stop:
            if run.trainer.is_global_zero:
                again = requeue(stop.number) or f"the same command goes on from there:\n  {command}"
                print(f"stopped after step {run.trainer.global_step}; {again}")
            raise SystemExit(128 + stop.number) from None
        if not run.trainer.is_global_zero:
            return Trained(run_dir)
        rows: list[Row] = []
        if evaluated:
            with local_only():
                evaluation = build_evaluation(config, run.data, config.trainer.accelerator)
                rows = evaluate(evaluation, read_checkpoint(run.checkpoint), run_dir / "report", command, log)
        else:
            log(f"no probe, or no test split: nothing is evaluated; the trained state is {run.checkpoint}")
        speed = {f"speed/{key}": value for key, value in training_of(run_dir).items() if key == "images_per_second"}
        log_end(run.trainer.loggers, scores(rows), speed, run.module.progress)
        return Trained(run_dir, rows, ended=True)


def job(config: DictConfig) -> float | None:
    """Train, and say what came of it; returns what a sweeper maximises."""
    trained = train(config, typed_command())
    if trained.ended:
        from unlabeled.commands.train.ending import score, tell

        tell(trained.run_dir, trained.rows, print, is_sweep())
        return score(trained.rows)
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; its ``arguments`` are those that were typed unless others are given.

    Of ``data=PATH`` alone the rest is picked, and the whole command said.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
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

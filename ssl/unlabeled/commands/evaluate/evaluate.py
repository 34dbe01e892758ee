"""Evaluate a frozen backbone by k-NN and linear probes: ``unlabeled evaluate run=outputs/NAME``."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.config import check_command, check_no_other_overrides, conf_folder, launch
from unlabeled.commands.importing import heavy_imports

if TYPE_CHECKING:
    from unlabeled.evaluation.reporting.results import Results


def evaluate_checkpoint(config: DictConfig, command: str, log: Callable[[str], None] = print) -> "Results | None":
    """One checkpoint, one report, whose results are returned; or something else that the configuration asks for."""
    check_command(config, conf_folder() / "eval_linear.yaml")
    given: Any = OmegaConf.to_container(config)
    _check_alone(config)
    if config.compare is not None:
        from unlabeled.evaluation.comparison.compare import compare

        log(compare(given["compare"], config.report_dir))
        return None
    if config.ensemble is not None:
        from unlabeled.evaluation.comparison.ensemble_of_runs import ensemble

        log(ensemble(given["ensemble"], config.report_dir))
        return None
    with heavy_imports():  # so late that --help, a mistyped key and a wrong value are answered at once
        from unlabeled.commands.build.evaluation import build_evaluation, build_self_test, complete_config
        from unlabeled.distributed.launch import process_group
        from unlabeled.evaluation.evaluate import evaluate
        from unlabeled.evaluation.reporting.results import Results
        from unlabeled.evaluation.self_test import self_test
        from unlabeled.weights import checkpoint_path, folder_of, read_checkpoint

    if config.self_test:
        raise SystemExit(0 if self_test(build_self_test(config)) else 1)
    path = checkpoint_path(config.run, config.checkpoint)
    report_dir = Path(config.report_dir or folder_of(path) / "report")
    checkpoint = read_checkpoint(path)
    with process_group(config.accelerator):
        evaluation = build_evaluation(complete_config(config, checkpoint), None, config.accelerator, config.precision)
        rows = evaluate(evaluation, checkpoint, report_dir, command, log)
    return Results(rows, report_dir / "report.html")


def _check_alone(config: DictConfig) -> None:
    """What compares runs or tests this machine evaluates no run: the other keys would not be read."""
    for key, beside in (("compare", ("report_dir",)), ("ensemble", ("report_dir",)), ("self_test", ())):
        if config[key]:
            check_no_other_overrides(key, *beside)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; its ``arguments`` are those that were typed unless others are given."""
    given = sys.argv[1:] if arguments is None else arguments
    launch("eval_linear", job, with_data_source(given))


def job(config: DictConfig) -> None:
    """As typed."""
    evaluate_checkpoint(config, typed_command())

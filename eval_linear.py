"""Judge a frozen backbone by k-NN and linear probes: ``python eval_linear.py run=outputs/NAME``."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.config import check_keys, check_no_other_overrides, one_line_errors
from unlabeled.commands.importing import heavy_imports
from unlabeled.core.writing import check_folder

CONF = Path(__file__).parent / "conf"


def judge(config: DictConfig, command: str) -> None:
    """One checkpoint, one report."""
    with heavy_imports():  # here and below, so that --help and a mistyped key are answered at once
        check_keys(config, CONF / "eval_linear.yaml")
    given: Any = OmegaConf.to_container(config)
    if config.report_dir:
        check_folder("report_dir", Path(config.report_dir))
    if config.compare is not None:
        from unlabeled.evaluation.comparison.compare import compare

        check_no_other_overrides("compare", "report_dir")
        print(compare(given["compare"], config.report_dir))
        return
    if config.ensemble is not None:
        from unlabeled.evaluation.comparison.ensemble_of_runs import ensemble

        check_no_other_overrides("ensemble", "report_dir")
        print(ensemble(given["ensemble"], config.report_dir))
        return
    with heavy_imports():
        from unlabeled.commands.build.evaluation import build_evaluation, build_self_test, complete_config
        from unlabeled.distributed.launch import process_group
        from unlabeled.evaluation.evaluate import evaluate
        from unlabeled.evaluation.self_test import self_test
        from unlabeled.weights import checkpoint_path, folder_of, read_checkpoint

    if config.self_test:
        check_no_other_overrides("self_test")
        raise SystemExit(0 if self_test(build_self_test(config)) else 1)
    path = checkpoint_path(config.run, config.checkpoint)
    report_dir = Path(config.report_dir or folder_of(path) / "report")
    checkpoint = read_checkpoint(path)
    with process_group(config.accelerator):
        evaluation = build_evaluation(complete_config(config, checkpoint), None, config.accelerator, config.precision)
        evaluate(evaluation, checkpoint, report_dir, command)


@hydra.main(version_base="1.3", config_path="conf", config_name="eval_linear")
def main(config: DictConfig) -> None:
    with one_line_errors(CONF, "eval_linear"):
        judge(config, " ".join(["python", *sys.argv]))


if __name__ == "__main__":
    with one_line_errors(CONF, "eval_linear"):  # mistakes that Hydra finds before it calls main
        main()

"""Pretrain a backbone without labels, then judge it: ``python train.py experiment=digits``."""

import sys
from contextlib import closing
from pathlib import Path

import hydra
from omegaconf import DictConfig

from unlabeled.commands.config import check_keys, check_no_other_overrides, one_line_errors, open_run
from unlabeled.commands.importing import heavy_imports

CONF = Path(__file__).parent / "conf"


def train(config: DictConfig, command: str) -> None:
    """One run: go on where it stopped, train to the end, judge the last state; or only look at views or a bad step."""
    with heavy_imports():  # so late that --help and a mistyped key are answered at once
        check_keys(config, CONF / "train.yaml")
        from unlabeled.commands.build.evaluation import build_evaluation
        from unlabeled.commands.build.run import build_preview, build_probes, build_replay, build_run
        from unlabeled.distributed import local_only
        from unlabeled.evaluation.evaluate import evaluate
        from unlabeled.training.checkpointing import Interrupted, requeue
        from unlabeled.weights import read_checkpoint

    if config.replay is not None:
        check_no_other_overrides("replay")
        raise SystemExit(0 if build_replay(config.replay).run() else 1)
    run_dir = Path(config.run_dir)
    resolved = open_run(config)
    if config.preview is not None:
        page, picture = build_preview(config).write(run_dir / "preview")
        print(f"nothing is trained; the views are in {page} and {picture}")
        return
    run = build_run(config, resolved)
    if config.plan_only:
        raise SystemExit(0 if run.plan() or not run.trainer.is_global_zero else 1)
    with closing(run):  # its folder is for another process then
        try:
            run.fit(resolved)
        except Interrupted as stop:
            if run.trainer.is_global_zero:
                again = requeue(stop.number) or f"the same command goes on from there:\n  {command}"
                print(f"stopped after step {run.trainer.global_step}; {again}")
            raise SystemExit(128 + stop.number) from None
        if not run.trainer.is_global_zero:
            return
        if not build_probes(config) or run.data.splits.test is None:
            print(f"no probe, or no test split: nothing is judged; the trained state is {run.checkpoint}")
            return
        with local_only():
            evaluation = build_evaluation(config, run.data, config.trainer.accelerator)
            evaluate(evaluation, read_checkpoint(run.checkpoint), run_dir / "report", command)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    with one_line_errors(CONF, "train"):
        train(config, " ".join(["python", *sys.argv]))


if __name__ == "__main__":
    with one_line_errors(CONF, "train"):  # mistakes that Hydra finds before it calls main
        main()

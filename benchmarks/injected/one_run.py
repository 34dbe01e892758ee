"""One recipe for some steps, healthy or spoilt, in a process of its own.

python -m benchmarks.injected.one_run OBJECTIVE FAILURE SEED STEPS DATA RUN_DIR      healthy; 0: to the end
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.injected.failures import FAILURES, Failure
from unlabeled.commands.build.run import build_run
from unlabeled.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
MORE = {
    "relicv2": ["views.masks=null"],
    "distill": ["objective.teacher=outputs/teacher"],  # a run of experiment=cifar10_cpu with backbone.width=0.5
    "fixmatch": ["max_epochs=8"],  # what lasts for 2 % of a run is named, of a longer one after more than 300 steps
    "scan": ["weights=outputs/pretrained"],  # a run of experiment=cifar10_cpu
    "self_label": ["weights=outputs/clustered"],  # experiment=scan_cifar10_cpu to its end: clusters must be certain
}
HEALTHY = Failure("healthy", ())


class Enough(Exception):
    """So many steps were taken."""


class StopAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Enough


def main(objective: str, failure: str, seed: str, steps: str, data: str, run_dir: str) -> None:
    spoilt = next((each for each in FAILURES if each.name == failure and objective in each.objectives), HEALTHY)
    with ExitStack() as stack:
        spoilt.before(stack)
        config = composed(objective, spoilt, seed, data, run_dir)
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        run = build_run(config, resolved)
        spoilt.after(run)
        if int(steps):
            run.trainer.callbacks.append(StopAt(int(steps)))  # type: ignore[attr-defined]
        try:
            run.fit(resolved)
        except Enough:
            print(f"{objective}, {failure}: {steps} steps")
        except UserError as error:
            print(f"{objective}, {failure}: stopped by itself: {error}")


def composed(objective: str, failure: Failure, seed: str, data: str, run_dir: str) -> Any:
    recipe = "cifar10_cpu" if objective == "simclr" else f"{objective}_cifar10_cpu"
    more = MORE.get(objective, [])
    given = [f"experiment={recipe}", f"data.path={data}", f"run_dir={run_dir}", f"seed={seed}", "online_knn=null"]
    overrides = [each for each in failure.overrides if each != "optimizer.lr=30x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*given, "pictures=null", *more, *overrides])
    if "optimizer.lr=30x" in failure.overrides:
        config.optimizer.lr *= 30
    return config


if __name__ == "__main__":
    main(*sys.argv[1:])

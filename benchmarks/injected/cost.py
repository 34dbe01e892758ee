"""What the monitor and the online probe take of a recipe's training time, at their default intervals.

python -m benchmarks.injected.cost EXPERIMENT DATA RUN_DIR EPOCHS
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.injected.one_run import CONF, Enough, StopAt
from unlabeled.commands.build.run import build_run
from unlabeled.health.monitor import HealthMonitor
from unlabeled.health.step import StepHealth
from unlabeled.training.online_knn import OnlineKNN

HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")


class Clock(pl.Callback):
    """Seconds from the first step to the last, without the first, in which things are set up."""

    def __init__(self) -> None:
        self.begun = self.ended = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()
        self.begun = self.begun or self.ended


def main(experiment: str, data: str, run_dir: str, epochs: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment={experiment}", f"data.path={data}", f"run_dir={run_dir}"])
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    run = build_run(config, resolved)
    spent: dict[str, float] = defaultdict(float)
    for callback in run.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, HealthMonitor | OnlineKNN):
            timed(callback, type(callback).__name__, spent, HOOKS)
    timed(StepHealth, HealthMonitor.__name__, spent, ["output"])  # called within a step
    clock, steps = Clock(), int(epochs) * run.module.steps_per_epoch
    run.trainer.callbacks += [clock, StopAt(steps)]  # type: ignore[attr-defined]
    try:
        run.fit(resolved)
    except Enough:
        whole = clock.ended - clock.begun
        print(json.dumps({"steps": steps, "seconds": whole, **{name: value / whole for name, value in spent.items()}}))


def timed(owner: object, of: str, spent: dict[str, float], names: Iterable[str]) -> None:
    """Add up the seconds in some methods of a callback, or of a class."""

    def wrapped(hook: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any, **named: Any) -> None:
            begun = time.perf_counter()
            hook(*arguments, **named)
            spent[of] += time.perf_counter() - begun

        return run

    for name in names:
        if hasattr(owner, name):
            setattr(owner, name, wrapped(getattr(owner, name)))


if __name__ == "__main__":
    main(*sys.argv[1:])

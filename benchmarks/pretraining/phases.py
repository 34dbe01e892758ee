"""Where the time of a step goes: a clock around each part of it, from outside. Nothing in ``ssl/`` knows of it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from benchmarks.pretraining.limit import synchronise
from unlabeled.data.loaders import Resumable
from unlabeled.training.run import Run

PARTS = ("data", "views", "forward", "backward", "optimizer", "faults", "logging")  # and the rest


class Phases(pl.Callback):
    """Seconds of each part of a step, the device synchronised wherever a part begins or ends.

    Args:
        warm: steps before the first that is timed.
        steps: that are timed; the one after them writes the checkpoint.
    """

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps = warm, steps
        self.steps_needed = warm + steps + 1
        self.per_step: dict[str, float] = {}  # seconds
        self.step = 0.0  # the whole of it
        self._spent: dict[str, float] = defaultdict(float)
        self._within: list[float] = []  # of each part that is open, what the parts inside it took
        self._begun = 0.0
        self._synchronise: Callable[[], None] = lambda: None

    @property
    def checkpoint(self) -> float:
        """Seconds for one."""
        return self._spent["checkpoint"]

    def attach(self, run: Run) -> None:
        """Put the clocks around the run's callables."""
        run.trainer.callbacks.append(self)  # type: ignore[attr-defined]
        device = run.trainer.strategy.root_device
        self._synchronise = lambda: synchronise(device)
        self._time_loader(run)
        for owner, name, part in (
            (run.trainer.strategy, "batch_to_device", "data"),
            (run.module, "output_of", "views"),  # less the objective's forward
            (run.module.objective, "forward", "forward"),
            (run.trainer.strategy, "backward", "backward"),
            (run.module.faults, "begin", "faults"),
            (run.module.faults, "allows_step", "faults"),
            (run.module.faults, "end_step", "faults"),
            (run.trainer.strategy, "optimizer_step", "optimizer"),
            (run.module, "on_before_optimizer_step", "optimizer"),
            (run.module.objective, "after_step", "optimizer"),
            (run.module, "write", "logging"),
            (run.checkpoints, "write", "checkpoint"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name), part))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens within counts for ``name``, less the parts inside it."""
        self._synchronise()
        self._within.append(0.0)
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._synchronise()
            spent = time.perf_counter() - begun
            self._spent[name] += spent - self._within.pop()
            if self._within:
                self._within[-1] += spent

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._synchronise()
        if trainer.global_step == self.warm:
            self._spent.clear()
            self._begun = time.perf_counter()
        if trainer.global_step == self.warm + self.steps:
            self.step = (time.perf_counter() - self._begun) / self.steps
            self.per_step = {name: self._spent[name] / self.steps for name in PARTS}
            self.per_step["rest"] = self.step - sum(self.per_step.values())

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed

    def _time_loader(self, run: Run) -> None:
        serve = run.data.train_dataloader
        setattr(run.data, "train_dataloader", lambda: _TimedLoader(serve(), self))  # noqa: B010, mypy minds a method


class _TimedLoader(Resumable):
    def __init__(self, loader: Any, phases: Phases) -> None:
        self.loader, self.phases = loader, phases

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for _ in range(len(self.loader)):
            with self.phases.part("data"):
                batch = next(batches)
            yield batch

"""Monitors a run while it trains: measures, compares with healthy values, and reports findings."""

import json
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch.optim import Optimizer

from unlabeled.core.ranges import AtLeastTwo, Count
from unlabeled.core.reading import read_utf8
from unlabeled.core.writing import Unwritable, write_atomic
from unlabeled.data.module import DataModule
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.errors import UserError
from unlabeled.health.diagnosis import Diagnosis
from unlabeled.health.facts import collect_facts
from unlabeled.health.folder import FILE, add_metrics
from unlabeled.health.probe import ProbeSet
from unlabeled.health.step import StepHealth
from unlabeled.objective import HasSchedules
from unlabeled.training.pretraining import Pretraining


class HealthMonitor(pl.Callback):
    """Measures the health of a run, prints a sentence for each finding and keeps them in ``run_dir/health.json``.

    The numbers are logged as ``health/…``. They do not change the run. Every process gets the same findings, from means
    over all processes.

    Args:
        every_n_steps: how often a step is measured, besides the first.
        probe_every_n_steps: how often the probe set is measured; early in the run also at 1, 2, 4, … times
            ``every_n_steps``.
        images: of the probe set, see :class:`ProbeSet`.
        stop: end a run that has collapsed.
    """

    def __init__(self, every_n_steps: Count, probe_every_n_steps: Count, images: AtLeastTwo, stop: bool) -> None:
        if every_n_steps < 1 or probe_every_n_steps % every_n_steps:
            raise UserError(
                f"health.probe_every_n_steps={probe_every_n_steps}: must be a multiple of "
                f"health.every_n_steps={every_n_steps}, which must be at least 1"
            )
        self.every_n_steps, self.probe_every_n_steps, self.stop = every_n_steps, probe_every_n_steps, stop
        self.probe = ProbeSet(images)
        self._asked = self._since = self._waited = 0.0  # seconds, to measure the wait for batches
        self._step: StepHealth | None = None  # the step that is being measured
        self._diagnosis: Diagnosis | None = None  # set with the first metrics
        self._news = False  # whether there are new metrics since the last diagnosis
        self._told: set[str] = set()  # findings already printed
        self._unwritable = False  # whether the warning that they cannot be written was printed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to the metrics that the run logs; reads those of earlier sessions from its folder."""
        assert isinstance(pl_module, Pretraining)
        module, begun_at = pl_module, trainer.global_step

        def listen(step: int, metrics: dict[str, float]) -> None:
            if self._diagnosis is None:
                facts = collect_facts(module.objective, module.plan, module.total_steps)
                orthogonal = any(group.get("orthogonal") for group in trainer.optimizers[0].param_groups)
                self._diagnosis = Diagnosis(replace(facts, orthogonal_steps=orthogonal))
                add_metrics(Path(trainer.default_root_dir), self._diagnosis, begun_at)
                self._told = {finding.name for finding in self._diagnosis.findings if finding.holds}
            self._diagnosis.add(step, metrics)
            self._news = True

        trainer.loggers.append(_Listener(listen))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if self._asked:
            self._waited += time.perf_counter() - self._asked
        step = trainer.global_step + 1
        if pl_module.part + 1 == pl_module.accumulate and (step == 1 or step % self.every_n_steps == 0):
            self._step = StepHealth(pl_module.objective, isinstance(trainer.strategy, FullySharded))
            pl_module.output_hooks.append(self._step.output)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._step is not None:
            self._step.gradients()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if pl_module.part == 0 and self._step is not None:
            looked, self._step = self._step, None
            pl_module.output_hooks.remove(looked.output)
            pl_module.faults.settle(pl_module)
            if pl_module.faults.in_a_row:
                looked.forget_gradients()
            self._write(pl_module, looked, trainer)
        if pl_module.part == 0 and self._news and self._diagnosis is not None:
            self._news = False
            self._report(self._diagnosis, trainer)
        self._asked = time.perf_counter()

    def _write(self, module: Pretraining, looked: StepHealth, trainer: pl.Trainer) -> None:
        looked.update()
        step, found = module.global_step, looked.found | {"data_wait": torch.tensor(self._data_wait())}
        if isinstance(module.objective, HasSchedules):
            values = module.objective.scheduled_values(module.progress._replace(step=step - 1, part=0), module.plan)
            found |= {f"planned/{name}": torch.tensor(value) for name, value in values.items()}
        if self._probe_is_due(step):
            assert isinstance(trainer.datamodule, DataModule)  # type: ignore[attr-defined]
            measured = self.probe.measure(module, trainer.datamodule)  # type: ignore[attr-defined]
            found |= {name: torch.tensor(value, dtype=torch.float64) for name, value in measured.items()}
        module.write({f"health/{name}": value for name, value in found.items()}, step)

    def _data_wait(self) -> float:
        """Returns the share of time, since the last call, between a batch's end and the next batch; 0 at first."""
        now = time.perf_counter()
        share = self._waited / (now - self._since) if self._since else 0.0
        self._since, self._waited = now, 0.0
        return share

    def _probe_is_due(self, step: int) -> bool:
        looks, rest = divmod(step, self.every_n_steps)
        early = step < self.probe_every_n_steps and looks & (looks - 1) == 0
        return rest == 0 and (early or step % self.probe_every_n_steps == 0)

    def _report(self, diagnosis: Diagnosis, trainer: pl.Trainer) -> None:
        """Prints new findings, writes all of them, and ends the run if it has collapsed and ``stop`` is set."""
        findings = [finding for finding in diagnosis.findings if finding.holds]
        new = [finding for finding in findings if finding.name not in self._told]
        self._told = {finding.name for finding in findings}
        if trainer.is_global_zero:
            for finding in new:
                print(f"{finding.severity}: {finding.sentence}", flush=True)
            self._keep(diagnosis, Path(trainer.default_root_dir))
        collapsed = [finding for finding in findings if finding.collapse]
        if self.stop and collapsed:
            raise UserError(
                f"stopped at step {trainer.global_step}, health=stop: {collapsed[0].sentence} "
                "health=watch continues from the last checkpoint, or starts again if there is none"
            )

    def _keep(self, diagnosis: Diagnosis, run_dir: Path) -> None:
        try:
            write_findings(diagnosis, run_dir)
        except Unwritable as error:  # must not stop the run; writing a checkpoint reports a full disk
            if not self._unwritable:
                print(f"warning: {error}; the findings are only printed", flush=True)
            self._unwritable = True


def write_findings(diagnosis: Diagnosis, run_dir: Path) -> None:
    """Writes ``health.json`` with findings and facts, atomically and only if they changed."""
    path = run_dir / FILE
    findings = [finding._asdict() for finding in diagnosis.findings]
    text = json.dumps({"findings": findings, "facts": diagnosis.facts.as_dict()}, indent=2) + "\n"
    try:
        if read_utf8(path) == text:
            return
    except (OSError, ValueError):
        pass  # the file is missing or damaged: it is written anew
    write_atomic(path, text)


class _Listener(Logger):
    """A logger that passes on what is logged, on every process."""

    def __init__(self, listen: Callable[[int, dict[str, float]], None]) -> None:
        super().__init__()
        self.listen = listen

    @property
    def name(self) -> str:
        return "health"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.listen(step or 0, metrics)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

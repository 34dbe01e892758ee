"""Describes in numbers what a run will do, before its first step: ``run_dir/plan.json``."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from torch import nn

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_bytes
from unlabeled.core.writing import write_atomic
from unlabeled.data.inspect.data_summary import all_left_out, summarize_data
from unlabeled.data.lists.left_out import LeftOut
from unlabeled.data.module import DataModule
from unlabeled.objective import Check, HasMethodWarnings, HasSchedules, Objective
from unlabeled.training.plan.checks import check_continued_rate, check_schedule
from unlabeled.training.plan.memory import StepMemory
from unlabeled.training.plan.trial import TrialResult
from unlabeled.training.pretraining import Pretraining
from unlabeled.views.progressive import ProgressiveViews

SHARES = (0.0, 0.01, 0.1, 0.5, 1.0)  # of the run; 1.0 is its last step


@dataclass(frozen=True)
class PlanPart:
    """Counts the parameters of one part of a method."""

    name: str
    parameters: int
    trained: int  # of them


@dataclass(frozen=True)
class RunPlan:
    """Describes what a run will do.

    ``schedule`` has a list for each of ``share``, ``step`` (the number of steps before it), ``learning_rate``,
    ``weight_decay`` and the names of ``HasSchedules``, with an entry for each of :data:`SHARES`.
    """

    batch_size: int  # over all processes
    batch_size_per_process: int
    accumulate: int
    processes: int
    steps: int
    steps_per_epoch: int
    epochs: float
    images: int  # in the training split
    data: list[str]  # the kind of source that was found, a line for each split
    left_out: LeftOut  # files that are no images, and corrupt images
    data_warnings: list[str]  # probable mistakes in the data, a sentence each
    device: str
    precision: str
    schedule: dict[str, list[float]]
    parameters: list[PlanPart]
    checks: list[Check]
    step: int  # from which the run continues
    memory: dict[str, Any] | None  # counted, on one process; see training.plan.memory.StepMemory
    not_counted: str | None  # why it is not
    trial: TrialResult | None
    not_tried: str | None  # why there is no trial
    seconds_left: float | None  # without waiting for data, probes and checkpoints
    ends: str | None  # local time, ISO 8601

    @property
    def passed(self) -> bool:
        """Returns whether all checks passed."""
        return all(check.passed for check in self.checks)

    def write(self, path: Path) -> None:
        """Writes the plan as JSON, atomically."""
        write_atomic(path, json.dumps(asdict(self), indent=2) + "\n")


def make_plan(
    module: Pretraining,
    data: DataModule,
    processes: int,
    device: str,
    precision: str,
    step: int,
    tried: TrialResult | str,
    memory: StepMemory | str | None = None,
) -> RunPlan:
    """Makes the plan of a run.

    Args:
        module, data: of the run; the length of the run is known.
        processes, device, precision: used by the run.
        step: from which the run continues.
        tried: the measurements, or the reason why there are none.
        memory: the count of a step's memory, or the reason why there is none; None: it was not asked for.
    """
    train = data.splits.train
    schedule, epochs = make_schedule(module), module.total_steps / module.steps_per_epoch
    checks = check_schedule(module.optimizer_config, epochs, module.images_per_step, schedule)
    checks += module.objective.plan_warnings(module.plan) if isinstance(module.objective, HasMethodWarnings) else []
    if module.weights is not None:
        checks += check_continued_rate(module.optimizer_config, module.images_per_step, module.weights["origin"])
    checks += module.views.plan_warnings(train.image_size)
    trial, left = (tried, module.total_steps - step) if isinstance(tried, TrialResult) else (None, 0)
    seconds = None if trial is None else left * trial.seconds_per_step
    ends = None if seconds is None else datetime.now().astimezone() + timedelta(seconds=seconds)
    return RunPlan(
        batch_size=module.batch_size,
        batch_size_per_process=module.batch_size // processes,
        accumulate=module.accumulate,
        processes=processes,
        steps=module.total_steps,
        steps_per_epoch=module.steps_per_epoch,
        epochs=epochs,
        images=len(data.train.labels),
        data=summarize_data(data.splits),
        left_out=all_left_out(data.splits, data.corrupt),
        data_warnings=list(data.splits.warnings),
        device=device,
        precision=precision,
        schedule=schedule,
        parameters=named_parts(module.objective),
        checks=checks,
        step=step,
        memory=memory.plain() if isinstance(memory, StepMemory) else None,
        not_counted=memory if isinstance(memory, str) else None,
        trial=trial,
        not_tried=tried if isinstance(tried, str) else None,
        seconds_left=seconds,
        ends=None if ends is None else ends.isoformat(timespec="seconds"),
    )


def make_schedule(module: Pretraining) -> dict[str, list[float]]:
    """Returns the scheduled values; see :class:`RunPlan`."""
    columns = [
        scheduled_values_at(module, min(int(share * module.total_steps), module.total_steps - 1)) for share in SHARES
    ]
    return {"share": list(SHARES)} | {name: [column[name] for column in columns] for name in columns[0]}


def scheduled_values_at(module: Pretraining, step: int) -> dict[str, float]:
    """Returns the values that the method uses in the step after ``step`` steps."""
    progress = module.progress._replace(step=step, part=0)
    own = {"learning_rate": module.optimizer_config.lr_at(progress, module.images_per_step)}
    own["weight_decay"] = module.optimizer_config.weight_decay_at(progress)
    if isinstance(module.objective, HasSchedules):
        own |= module.objective.scheduled_values(progress, module.plan)
    if isinstance(module.views, ProgressiveViews):
        own["view_size"] = module.views.at(step).size
    return {"step": step} | own


def named_parts(objective: Objective) -> list[PlanPart]:
    """Returns the objective's children that have parameters, by name."""
    return [_part(name, child) for name, child in objective.named_children() if any(True for _ in child.parameters())]


def _part(name: str, module: nn.Module) -> PlanPart:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return PlanPart(name, sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def read_trial(path: Path, of: str) -> TrialResult | None:
    """Returns the measurements of an earlier plan of the same configuration and device, or None."""
    try:
        kept: dict[str, Any] | None = parse_json(read_bytes(path))["trial"]
        return None if kept is None or kept["of"] != of else TrialResult(**kept)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no plan, or one of another version

"""Computes a skipped step again on the CPU: ``python train.py replay=FILE``."""

from pathlib import Path
from typing import Any

import torch

from unlabeled.core.file_config import short
from unlabeled.errors import UserError
from unlabeled.evaluation.features import AUTOCAST
from unlabeled.objective import Batch, Objective, Plan, Support
from unlabeled.optimizers import OptimizerConfig
from unlabeled.training.faults.diagnosis import NOWHERE, find_non_finite
from unlabeled.training.faults.guard import NonFiniteGuard
from unlabeled.training.pretraining import Pretraining
from unlabeled.views.pipeline import Views


class PretrainingAtStep(Pretraining):
    """The module of a run at one step on one process, without the trainer that usually gives these values."""

    at_step = at_rank = 0

    @property
    def global_step(self) -> int:
        return self.at_step

    @property
    def global_rank(self) -> int:
        return self.at_rank


def _load(objective: Objective, state: dict[str, Any]) -> None:
    wanted = objective.state_dict()
    wrong = [name for name in {**wanted, **state} if not _same_shape(state.get(name), wanted.get(name))]
    if wrong:
        raise UserError(f"replay: {len(wrong)} tensors are not those of its objective, e.g. {short(wrong[0])}")
    objective.load_state_dict(state)


def _same_shape(found: Any, wanted: Any) -> bool:
    both = isinstance(found, torch.Tensor) and isinstance(wanted, torch.Tensor)
    return both and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)


class Replay:
    """Runs forward and backward of a step on the CPU with one process, in the precision of its run.

    Args:
        record: see :func:`unlabeled.training.faults.record.write_record`.
        views, objective, optimizer: those of the run; the state is loaded into the objective here.

    Raises:
        UserError: a precision that CPUs do not support.
    """

    def __init__(self, record: dict[str, Any], views: Views, objective: Objective, optimizer: OptimizerConfig) -> None:
        self.record, self.precision = record, str(record["precision"])
        if self.precision not in AUTOCAST:
            raise UserError(f"replay: the run had trainer.precision={self.precision}; known are {', '.join(AUTOCAST)}")
        _load(objective, record["state_dict"])
        views.compiles = False  # compiling takes minutes, too long for one step
        key, progress, nothing = record["key"], record["progress"], NonFiniteGuard(Path(), 1)
        steps = progress["parts"], progress["total_steps"], progress["steps_per_epoch"]
        plan = Plan(key["total"], record["world_size"], 0, ())  # the other fields are not used in a step
        self.module = PretrainingAtStep(objective, views, optimizer, plan, *steps, key["seed"], 1, {}, nothing)
        self.module.at_step, self.module.at_rank = progress["step"], record["rank"]
        self.module.part = progress["part"]
        self.module.train()

    def run(self) -> bool:
        """Prints the finding; returns whether anything was not finite."""
        print(self._heading())
        dtype = AUTOCAST[self.precision]
        found = find_non_finite(
            self.module, self._batch(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
        )
        print(f"then: {self.record['named']}")
        print(f"now:  {found}")
        if found.place == NOWHERE:
            print("not reproduced: the cause was the GPU, the images of another process, or a fault that happened once")
        return found.place != NOWHERE

    def _heading(self) -> str:
        rank, processes = self.record["rank"], self.record["world_size"]
        heading = f"step {self.module.global_step + 1} in {self.precision}"
        if processes == 1:
            return heading
        return f"{heading}, the images of process {rank} of {processes} alone: what is compared with others differs"

    def _batch(self) -> Batch:
        support, companions = self.record["support"], self.record.get("companions")
        return Batch(
            **self.record["batch"],
            support=None if support is None else Support(**support),
            companions=None if companions is None else Batch(**companions),
        )

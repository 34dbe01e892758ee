"""Skips steps whose loss or gradient is not finite; counts them, names the cause and records them for replay."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from torch import Tensor

from unlabeled import distributed
from unlabeled.core.few_launches import few_launches
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Objective, WritesTrained
from unlabeled.optimizers.skipping import can_skip
from unlabeled.training.faults.deferred import DeferredVerdicts, JudgedStep
from unlabeled.training.faults.diagnosis import NOWHERE, NonFiniteFinding, find_non_finite
from unlabeled.training.faults.record import write_record
from unlabeled.training.faults.snapshot import Snapshot
from unlabeled.training.faults.verdict import any_not_finite, is_bad

if TYPE_CHECKING:
    from unlabeled.training.pretraining import Pretraining

KEPT = 3  # records per run, beside that of the step that stops it: each holds the whole state and a batch
HOPELESS = "weights are not finite, an update was too large and none can mend them"
UNNAMED = "a loss or gradient is not finite"


class NonFiniteGuard:
    """Decides for each step whether it may be taken, after its loss and gradients are computed.

    A bad step leaves everything as it was before: weights, optimizer, queue, BatchNorm statistics, momentum encoder.
    The run goes on with the next step, whose samples, views and learning rate are functions of its number as always.

    There are two forms with the same bits. The immediate one reads the verdict before every optimizer step, which on a
    CPU costs nothing. On a CPU core the check and :class:`Snapshot` take 0.7 of the 130 ms of a step of
    ``experiment=digits``; steps with and without them, taken in turns, differ by 1 ± 1 %. A GPU would idle until the
    host has launched the next kernels. There the deferred form (:class:`DeferredVerdicts`) skips bad steps on the
    device, and the host learns of them within 8 steps, and before it writes a number or a state: it counts them then in
    their order, but records and names only the first of those that it learns of together. Of every other kind of run
    the form is the immediate one: with the gradient scaler of 16-mixed, which reads as much anyway, with weights that
    are sharded (FSDP), and with an optimizer that cannot skip by a flag.

    With 16-mixed, the scaler skips steps whose gradients overflow, unless they would overflow at a scale of 1 too. All
    processes decide alike, also with sharded weights, and the process whose bad tensor comes first in the step writes
    the file.

    Args:
        folder: for the records, ``run_dir/faults``.
        max_in_a_row: number of consecutive bad steps that stops the run.
    """

    def __init__(self, folder: Path, max_in_a_row: int) -> None:
        if max_in_a_row < 1:
            raise UserError(f"max_faults_in_a_row={max_in_a_row}: must be at least 1 (stop at the first)")
        self.folder, self.max_in_a_row = folder, max_in_a_row
        self.skipped = self.in_a_row = self.saved = 0
        self._batches: list[Batch] = []  # of the present step, without views
        self._loss: Tensor | float = 0.0  # sum of the losses of these batches
        self._before: Snapshot | None = None
        self._deferred: DeferredVerdicts | None = None  # None: the immediate form

    def state_dict(self) -> dict[str, int]:
        """Returns the values that a checkpoint saves; :meth:`settle` must have been called."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "saved": self.saved}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row, self.saved = state["skipped"], state["in_a_row"], state["saved"]

    def prepare(self, module: "Pretraining") -> None:
        """Chooses the form; must be called before the first step, when optimizer and weights are on their device."""
        if not few_launches(module.device):
            return
        if reason := _why_not_deferred(module.trainer):
            if module.trainer.is_global_zero:
                print(f"each step waits for {module.device}, to check that its loss is finite: {reason}")
            return
        self._deferred = DeferredVerdicts(module.objective, module.trainer.optimizers[0])

    def begin(self, module: "Pretraining", batch: Batch) -> None:
        """Must be called with each batch before its forward; the first of a step saves the state to restore."""
        if module.part == 0:
            self._before = self._before or Snapshot(module.objective, self._written(module.objective))
            self._before.keep()
            self._batches, self._loss = [], 0.0
        self._batches.append(batch)

    def note(self, loss: Tensor) -> None:
        """Must be called with each loss; it does not wait for the device."""
        self._loss = self._loss + loss.detach()

    def allows_step(self, module: "Pretraining") -> bool:
        """Returns whether the step may be taken; a step that may not is undone and counted.

        In the deferred form it always may: the optimizer skips it, and :meth:`end_step` undoes the rest.

        Raises:
            UserError: too many consecutive bad steps, or weights that are not finite, which no later step can repair.
        """
        assert self._before is not None
        loss, parameters = torch.as_tensor(self._loss), self._before.parameters
        gradients = [each.grad for each in parameters if each.grad is not None]
        if self._deferred is not None:
            self._deferred.judge(loss, gradients)
            return True
        bad = is_bad(loss, gradients, getattr(module.trainer.precision_plugin, "scaler", None))
        if bad:
            self._before.restore()
        self._count(module, [JudgedStep(module.global_step, self._batches, bad)])
        return not bad

    def end_step(self, module: "Pretraining") -> None:
        """Must be called after each step, taken or not; raises the errors of :meth:`allows_step` for earlier ones."""
        if self._deferred is not None:
            assert self._before is not None
            self._deferred.end_step(module.global_step, self._batches, self._before)
            self._count(module, self._deferred.read(everything=module.logs_next_step))

    def settle(self, module: "Pretraining") -> None:
        """Learns of all steps so far; must be called by all processes, and does nothing within a step.

        Raises:
            UserError: as :meth:`allows_step`.
        """
        if self._deferred is not None and module.part == 0:
            self._count(module, self._deferred.read(everything=True))

    def check_weights(self, module: "Pretraining") -> None:
        """Raises UserError for weights that are not finite: their checkpoint would replace a good one."""
        self.settle(module)
        if any_not_finite(module.objective.parameters()):
            raise UserError(f"stopped after step {module.global_step}: {HOPELESS}; {_remedy(module)}")

    def _written(self, objective: Objective) -> Sequence[Tensor]:
        """Returns trained parameters that more than the optimizer writes to, before it is known whether it may."""
        if self._deferred is None or not isinstance(objective, WritesTrained):
            return ()
        return objective.written_after_step()

    def _count(self, module: "Pretraining", steps: Sequence[JudgedStep]) -> None:
        """Counts steps in their order; names and records the first bad one, and says each."""
        first = next((each for each in steps if each.bad), None)
        hopeless = first is not None and any_not_finite(module.objective.parameters())
        stops, named = hopeless or self._too_many(steps), UNNAMED
        if first is not None and (stops or self.saved < KEPT):
            named = self._diagnose(module, first)
        for each in steps:
            self.in_a_row = self.in_a_row + 1 if each.bad else 0
            if each.bad:
                self._skip(module, each.step + 1, named, each is first, hopeless)
        if first is not None and self._deferred is not None:
            self._deferred.before_fault.forget()

    def _too_many(self, steps: Sequence[JudgedStep]) -> bool:
        """Returns whether the run must stop at one of these steps."""
        in_a_row = self.in_a_row
        for each in steps:
            in_a_row = in_a_row + 1 if each.bad else 0
            if in_a_row >= self.max_in_a_row:
                return True
        return False

    def _skip(self, module: "Pretraining", step: int, named: str, is_named: bool, hopeless: bool) -> None:
        """Counts a bad step, numbered from 1; raises UserError if it is the last that is borne."""
        stops = hopeless or self.in_a_row >= self.max_in_a_row
        self.skipped += 1
        self.saved += stops or self.saved < KEPT  # those that the immediate form records
        module.write({"train/skipped_steps": torch.tensor(float(self.skipped))}, step)
        if stops:
            reason = HOPELESS if hopeless else f"no finite loss and gradient in {self.in_a_row} steps in a row"
            raise UserError(f"stopped at step {step}, {reason}: {named}; {_remedy(module)}")
        if module.trainer.is_global_zero:
            print(f"step {step} is skipped, {self.skipped} so far: {named if is_named else UNNAMED}")

    def _diagnose(self, module: "Pretraining", judged: JudgedStep) -> str:
        """Names the first bad tensor of a step and lets the process that has it write the file."""
        assert self._before is not None
        with self._as_before(module, judged.step):
            found = self._compute_again(module, judged.batches)
            self._before.restore()
            bad = torch.tensor([each.place != NOWHERE for each in found], device=module.device).float()
            part = int(distributed.maximum(bad).argmax())  # the first batch that is bad on any process
            self._compute_again(module, judged.batches[:part])  # up to the state before the bad batch
            finding, module.part = found[part], part
            first = _earliest(finding, module.device)
            path = self.folder / f"step_{judged.step + 1:06d}.pt"
            write_record(path, module, judged.batches[part], finding, keep=distributed.rank() == first)
            self._before.restore()
        module.objective.zero_grad()
        return str(module.trainer.strategy.broadcast(f"{finding}; python train.py replay={path}", src=first))

    @contextmanager
    def _as_before(self, module: "Pretraining", step: int) -> Iterator[None]:
        """Lets the module be, within the block, as it was before a step that was skipped."""
        assert self._before is not None
        module.again = step
        try:
            if self._deferred is None:
                yield
                return
            with self._deferred.before_fault.loaded():
                self._before.keep()
                yield
        finally:
            module.again, module.part = None, 0

    def _compute_again(self, module: "Pretraining", batches: Sequence[Batch]) -> list[NonFiniteFinding]:
        """Computes the first batches of a step again, one after the other."""
        found = []
        for module.part, batch in enumerate(batches):
            context = module.trainer.precision_plugin.train_step_context()
            found.append(find_non_finite(module, batch, context))
        return found


def _why_not_deferred(trainer: pl.Trainer) -> str | None:
    """Returns the reason why a device must be asked before each optimizer step, None if there is none."""
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "the gradient scaler of 16-mixed does so too"
    if isinstance(trainer.strategy, FullySharded):
        return "its weights are sharded"
    optimizer = trainer.optimizers[0]
    if can_skip(optimizer):
        return None
    name = type(optimizer).__name__
    fused = all(group.get("fused", True) for group in optimizer.param_groups)  # where that is a choice at all
    return f"{name} cannot skip a step" if fused else f"{name} is not fused; give optimizer.optimizer.fused=true"


def _earliest(finding: NonFiniteFinding, device: torch.device) -> int:
    """Returns the process whose first bad tensor comes first in the step; of several, the lowest."""
    processes = distributed.world_size()
    order = torch.tensor(finding.place * processes + distributed.rank(), device=device)
    return -int(distributed.maximum(-order)) % processes


def _remedy(module: "Pretraining") -> str:
    advice = "try a lower optimizer.lr or more optimizer.warmup_epochs, with another name=…"
    if module.trainer.precision == "32-true":
        return advice
    wider = "32-true" if module.trainer.precision == "bf16-mixed" else "bf16-mixed or 32-true"
    return f"{advice}; or go on from the last checkpoint with trainer.precision={wider}"

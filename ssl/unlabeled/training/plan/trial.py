"""Measures the time and memory of a step by a few steps on a copy of the network, which is then thrown away."""

import copy
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from unlabeled import distributed
from unlabeled.core.few_launches import few_launches
from unlabeled.errors import UserError
from unlabeled.objective import AfterBackward, Batch, Objective
from unlabeled.training.faults.deferred import StateBeforeFault
from unlabeled.training.faults.guard import NonFiniteGuard
from unlabeled.training.faults.replay import PretrainingAtStep
from unlabeled.training.faults.snapshot import Snapshot
from unlabeled.training.pretraining import Pretraining
from unlabeled.views.progressive import ProgressiveViews


@dataclass(frozen=True)
class TrialResult:
    """Holds the measurements."""

    steps: int
    first_step_seconds: float  # includes warm-up
    seconds_per_step: float  # mean of the other steps on the slowest process
    peak_memory_bytes: int | None  # of the largest process: allocated by torch on a GPU, all memory on a CPU
    of: str  # fingerprint of configuration, device and number of processes


class PretrainingOnCopy(PretrainingAtStep):
    """The training module with a copy of the network, without a trainer."""

    def forward(self, batch: Batch) -> Tensor:
        """Returns the loss. It must have this name so that DDP averages the gradients over processes."""
        return self.output_of(batch).loss


def run_trial(trainer: pl.Trainer, module: Pretraining, batch: Batch, step: int, steps: int, of: str) -> TrialResult:
    """Runs views, forward, backward and optimizer step several times with one batch, on all processes together.

    The run itself does not change: weights, buffers, optimizer, random state, order of samples.

    Args:
        trainer, module: of the run, on its device.
        batch: a real one, without views.
        step: from which the run continues.
        steps: number of trial steps, at least 2.
        of: see :class:`TrialResult`.

    Raises:
        UserError: a step does not fit into memory, or the objective cannot be copied.
    """
    device = trainer.strategy.root_device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            if devices:
                torch.cuda.reset_peak_memory_stats(device)
            tried = _Steps(trainer, module, step)
            seconds = [tried.take(batch) for _ in range(steps)]
            memory = _peak_memory(trainer, module)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not _short_of_memory(error):
            raise
        raise UserError(_too_large(module, device, trainer.world_size)) from error
    if devices:
        del tried
        torch.cuda.reset_peak_memory_stats(device)  # from here on, the peak is the run's
    worst = distributed.maximum(torch.tensor([seconds[0], sum(seconds[1:]) / (steps - 1), memory or 0.0]).to(device))
    first, others, memory = worst.tolist()
    return TrialResult(steps, round(first, 4), round(others, 4), int(memory) or None, of)


class _Steps:
    """Takes steps as a run does, but without Lightning and without skipping bad ones."""

    def __init__(self, trainer: pl.Trainer, module: Pretraining, step: int) -> None:
        self.module = PretrainingOnCopy(
            _copy(module.objective),
            module.views.full if isinstance(module.views, ProgressiveViews) else module.views,
            module.optimizer_config,
            module.plan,
            module.accumulate,
            module.total_steps,
            module.steps_per_epoch,
            module.seed,
            module.log_every_n_steps,
            {},
            NonFiniteGuard(module.faults.folder, 1),
        )
        self.module.at_step, self.module.at_rank = step, trainer.global_rank
        self.optimizer = module.optimizer_config.build(self.module.objective, module.images_per_step)
        module.optimizer_config.set_step(self.optimizer, self.module.progress, module.images_per_step)
        self.before, self.before_fault = Snapshot(self.module.objective), StateBeforeFault(self.module.objective)
        self.precision, self.device = trainer.precision_plugin, trainer.strategy.root_device
        self.network = _with_ddp(self.module, trainer)

    def take(self, batch: Batch) -> float:
        """Takes one step with ``batch`` as each of its parts; returns the seconds."""
        started = time.perf_counter()
        self.before.keep()
        for part in range(self.module.accumulate):
            self.module.part = part
            with self._gradient_exchange():
                with self.precision.train_step_context():
                    loss = self.network(batch) / self.module.accumulate
                loss.backward()
        self.module.part = 0
        if isinstance(self.module.objective, AfterBackward):
            self.module.objective.after_backward(self.module.progress)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.objective.after_step(self.module.progress)
        if few_launches(self.device):  # time and memory of the deferred form of the guard
            self.before_fault.keep_if(torch.zeros((), device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def _gradient_exchange(self) -> AbstractContextManager[None]:
        """Lets gradients be exchanged between processes only with the last part."""
        last = self.module.part == self.module.accumulate - 1
        return (
            self.network.no_sync() if isinstance(self.network, DistributedDataParallel) and not last else nullcontext()
        )


def _copy(objective: Objective) -> Objective:
    try:
        return copy.deepcopy(objective)
    except TypeError as error:  # raised for state that is no tensor
        name = type(objective).__name__
        raise UserError(f"{name} cannot be copied for trial steps ({error}): give plan.trial_steps=0") from error


def _with_ddp(module: PretrainingOnCopy, trainer: pl.Trainer) -> PretrainingOnCopy | DistributedDataParallel:
    """Wraps the module in DDP if there are several processes, so that gradients are averaged as in the run."""
    if trainer.world_size == 1:
        return module
    assert isinstance(trainer.strategy, DDPStrategy)
    devices = trainer.strategy.determine_ddp_device_ids()
    joined = DistributedDataParallel(module, device_ids=devices)
    joined.broadcast_buffers = False  # as AverageBatchNormStats sets it in the run; torch 2.15 renames the argument
    return joined


def _peak_memory(trainer: pl.Trainer, module: Pretraining) -> int | None:
    """Returns the peak memory without what exists twice: the network and, in a resumed run, the optimizer state."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        states = [slot for slots in trainer.optimizers[0].state.values() for slot in slots.values()]
        return torch.cuda.max_memory_allocated(device) - network_bytes(module) - _bytes(states)
    if device.type != "cpu":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def network_bytes(module: Pretraining) -> int:
    """Returns the bytes of weights and buffers, the size of a copy."""
    return _bytes([*module.objective.parameters(), *module.objective.buffers()])


def _bytes(values: list[Any]) -> int:
    return sum(each.numel() * each.element_size() for each in values if isinstance(each, Tensor))


def _short_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _too_large(module: Pretraining, device: torch.device, processes: int) -> str:
    """Returns the error message for a batch that does not fit: the memory there is, and what to change."""
    share = f"{module.batch_size // processes} images a process" if processes > 1 else f"{module.batch_size} images"
    room = f" of {torch.cuda.mem_get_info(device)[1] / 2**30:.0f} GiB" if device.type == "cuda" else ""
    return (
        f"a step of {share} does not fit into the memory of {device}{room}, tried on a copy of the network: give a "
        "smaller batch_size, with accumulate=… for as many images a step, or backbone.gradient_checkpointing=true; "
        "plan.trial_steps=0 goes without a copy"
    )

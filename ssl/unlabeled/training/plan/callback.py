"""Makes the plan of a run before its first step, when all is on its device and the processes are connected."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from unlabeled.core.ranges import NoneOrMore
from unlabeled.data.loaders import Resumable
from unlabeled.data.module import DataModule
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.errors import UserError
from unlabeled.training.machine.arithmetic import describe_precision
from unlabeled.training.plan.plan import make_plan, read_trial
from unlabeled.training.plan.room import check_room, step_memory
from unlabeled.training.plan.text import format_plan
from unlabeled.training.plan.trial import TrialResult, network_bytes, run_trial
from unlabeled.training.pretraining import Pretraining

LARGE = 0.1  # share of a GPU: with a larger copy, a step may no longer fit (our choice)
DECIDING = ("objective", "backbone", "views", "data", "optimizer", "batch_size", "accumulate", "compile", "trainer")


class PlanCallback(pl.Callback):
    """Prints the plan and writes ``run_dir/plan.json``; see :class:`unlabeled.training.plan.plan.RunPlan`.

    A resumed run reuses the measurements of an earlier plan of the same configuration on the same kind of device.

    Args:
        trial_steps: steps on a copy, see :func:`unlabeled.training.plan.trial.run_trial`; 0 for none.
        trial_from: trial steps are only taken if at least so many steps are left.
        only: make only the plan and take no step; then it is measured anew, however many steps are left.

    Raises:
        UserError: a single trial step, which would only be warm-up.
    """

    def __init__(self, trial_steps: NoneOrMore, trial_from: NoneOrMore, only: bool = False) -> None:
        if trial_steps == 1 or trial_steps < 0:
            raise UserError(f"plan.trial_steps={trial_steps}: the first one warms up; give at least 2, or 0 for none")
        self.trial_steps, self.trial_from, self.only = trial_steps, trial_from, only
        self.step: int | None = None  # from which the run continues; None: the trainer's
        self.passed = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretraining)
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        step = trainer.global_step if self.step is None else self.step
        path = Path(trainer.default_root_dir) / "plan.json"
        size = data.splits.train.image_size
        check_room(trainer, pl_module, size)
        memory = step_memory(trainer, pl_module, size) if self.only else None
        tried = self._trial_result(trainer, pl_module, step, path)
        device = _device_name(trainer.strategy.root_device)
        precision = describe_precision(str(trainer.precision), trainer.strategy.root_device)
        plan = make_plan(pl_module, data, trainer.world_size, device, precision, step, tried, memory)
        self.passed = plan.passed
        if trainer.is_global_zero:
            plan.write(path)
            print(format_plan(plan, path.parent.name), flush=True)
        if self.only:
            self._stop(trainer, path)

    def _stop(self, trainer: pl.Trainer, path: Path) -> None:
        trainer.should_stop = True
        assert trainer.progress_bar_callback is not None
        trainer.progress_bar_callback.disable()
        if trainer.is_global_zero:
            print(f"nothing is trained; the plan is in {path}", flush=True)

    def _trial_result(self, trainer: pl.Trainer, module: Pretraining, step: int, path: Path) -> TrialResult | str:
        """Returns the measurements, new or earlier, or the reason why there are none; the same on every process."""
        left = module.total_steps - step
        if not self.trial_steps:
            return "plan.trial_steps=0"
        if isinstance(trainer.strategy, FullySharded):
            return "a copy is not made with trainer.strategy=fsdp"
        if any(getattr(part, "_compiled_call_impl", None) for part in module.objective.modules()):
            return "a copy would be compiled anew with compile=…"
        if left < self.trial_from and not self.only:
            return f"{left} steps are left, fewer than plan.trial_from={self.trial_from}"
        device = trainer.strategy.root_device
        if device.type == "cuda" and network_bytes(module) > LARGE * torch.cuda.mem_get_info(device)[1]:
            return f"a copy of the weights would take more than {LARGE:.0%} of the GPU's memory"
        of = _fingerprint(trainer, module)
        kept = trainer.strategy.broadcast(None if self.only else read_trial(path, of))
        if kept is not None:
            return kept
        loader: Resumable = trainer.train_dataloader  # type: ignore[assignment]
        batch = trainer.strategy.batch_to_device(loader.peek())
        return run_trial(trainer, module, batch, step, self.trial_steps, of)


def _fingerprint(trainer: pl.Trainer, module: Pretraining) -> str:
    """Returns a hash of all that determines the time of a step."""
    facts: dict[str, Any] = {key: module.config.get(key) for key in DECIDING}
    facts |= {"processes": trainer.world_size, "precision": trainer.precision, "torch": torch.__version__}
    facts["device"] = _device_name(trainer.strategy.root_device)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type

"""The one LightningModule: it drives an objective through a run and knows no method's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from unlabeled.core.seeding import derive_seed
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.objective import Batch, Objective, Output, Progress, Support
from unlabeled.optimizers import OptimizerConfig
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import Views

_SUPPORT = 0x5099  # keeps the draws of labelled images apart from those of the batch


class StepGuard(Protocol):
    """Decides which steps are taken; :class:`unlabeled.training.faults.guard.NonFiniteGuard`, which knows this module."""

    skipped: int  # steps not taken so far
    folder: Path  # of the records of such steps

    def begin(self, module: "Pretraining", batch: Batch) -> None: ...
    def note(self, loss: Tensor) -> None: ...
    def run_step(self, module: "Pretraining", forward_backward: Callable[[], Tensor]) -> Tensor | None: ...
    def check_weights(self, module: "Pretraining") -> None: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Pretraining(pl.LightningModule):
    """Views on the device, the objective's loss, an optimizer step at its learning rate, the objective's own update.

    Args:
        objective: the method, with its backbone.
        views: makes the views of a batch.
        optimizer: how it is optimised.
        batch_size: over all processes.
        accumulate: batches whose gradients are averaged in a step.
        total_steps, steps_per_epoch: of the run, in optimizer steps.
        seed: of every random draw.
        log_every_n_steps: how often metrics are read from the device and written.
        config: the run's resolved configuration as a plain dict; it travels in each checkpoint.
        faults: decides which steps are taken.
    """

    def __init__(
        self,
        objective: Objective,
        views: Views,
        optimizer: OptimizerConfig,
        batch_size: int,
        accumulate: int,
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        log_every_n_steps: int,
        config: dict[str, Any],
        faults: StepGuard,
    ) -> None:
        super().__init__()
        # Convolutions are faster with channels last, on GPUs and on CPUs.
        self.objective: Objective = objective.to(memory_format=torch.channels_last)
        self.views = views
        self.optimizer_config, self.batch_size, self.accumulate = optimizer, batch_size, accumulate
        self.total_steps, self.steps_per_epoch, self.seed = total_steps, steps_per_epoch, seed
        self.log_every_n_steps, self.config, self.faults = log_every_n_steps, config, faults
        # callbacks that look at each output, with its graph
        self.output_hooks: list[Callable[[Batch, Output], None]] = []
        self.part = 0  # batches since the last optimizer step
        self.steps_taken = 0  # by this process, since it was started

    @property
    def progress(self) -> Progress:
        """Where the run is; ``step`` counts the optimizer steps that are done."""
        return Progress(self.global_step, self.total_steps, self.steps_per_epoch, self.seed, self.part, self.accumulate)

    def is_due(self, every_n_epochs: int) -> bool:
        """Whether a step was just taken and ended such a number of epochs, or the run: for callbacks after a batch.

        To Lightning a run is one long epoch: it then stops and goes on in one way only, after any step.
        """
        step = self.global_step
        return self.part == 0 and (step % (every_n_epochs * self.steps_per_epoch) == 0 or step == self.total_steps)

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return self.optimizer_config.lr_at(self.progress, self.images_per_step)

    @property
    def images_per_step(self) -> int:
        """Over all processes and batches."""
        return self.batch_size * self.accumulate

    def configure_model(self) -> None:
        """Called once the processes know each other."""
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.cut(self.objective)

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer_config.build(self.objective, self.images_per_step)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        output = self.output_of(batch)
        self.faults.note(output.loss)
        for hook in self.output_hooks:
            hook(batch, output)
        self.part += 1
        # Reading a loss waits for the device.
        if self.part == self.accumulate and (self.global_step + 1) % self.log_every_n_steps == 0:
            metrics = {"loss": output.loss, **output.metrics, "learning_rate": torch.tensor(self.learning_rate)}
            metrics["skipped_steps"] = torch.tensor(float(self.faults.skipped))
            self.write({f"train/{name}": value for name, value in metrics.items()}, self.global_step + 1)
        return {"loss": output.loss, "features": output.features, "labels": batch.labels}

    def output_of(self, batch: Batch) -> Output:
        """What the objective makes of the batch that comes next; the same whenever it is asked."""
        # Dropout and stochastic depth of a backbone draw from the global state: tie it to the step, so that a resumed
        # run draws the same, and to the process, so that two do not drop the same units.
        torch.manual_seed(derive_seed(self.seed, self.progress.batch, self.global_rank))
        output: Output = self.objective(self._with_views(batch), self.progress)
        return output

    def view_key(self, batch: Batch) -> ViewKey:
        """Names the draws of the views: (seed, batch), and the place in the global batch."""
        return ViewKey(self.seed, self.progress.batch, self.global_rank * len(batch.images), self.batch_size)

    def _with_views(self, batch: Batch) -> Batch:
        """Views are made on the device, in full precision."""
        with torch.autocast(batch.images.device.type, enabled=False):
            views = self.views(batch.images, batch.ids, self.view_key(batch), sizes=batch.sizes)
        views = tuple(view.to(memory_format=torch.channels_last) for view in views)
        return batch._replace(views=views, support=self._support_with_views(batch.support))

    def _support_with_views(self, support: Support | None) -> Support | None:
        """Labelled images are seen as the batch's first views are, with draws of their own."""
        wanted = self.objective.support
        if support is None or wanted is None:
            return None
        images = len(support.images)
        seed = derive_seed(self.seed, _SUPPORT)
        key = ViewKey(seed, self.progress.batch, self.global_rank * images, wanted.images_per_step)
        with torch.autocast(support.images.device.type, enabled=False):
            views = self.views(support.images, support.ids, key, first=wanted.views, sizes=support.sizes)
        return support._replace(views=tuple(view.to(memory_format=torch.channels_last) for view in views))

    def write(self, metrics: dict[str, Tensor], step: int) -> None:
        """Hand scalars, averaged over the processes, to every logger; ``step`` counts the steps with this one."""
        reduce = self.trainer.strategy.reduce
        mean = {name: float(reduce(value.detach().to(self.device))) for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics({"epoch": step / self.steps_per_epoch, **mean}, step)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.objective.after_backward(self.progress._replace(part=0))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.faults.begin(self, batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step at the planned learning rate, then the objective's own update with the progress of that step.

        Neither where the loss or a gradient is not finite: the step then counts, and changes nothing.
        """
        progress = self.progress._replace(part=0)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
        loss = self.faults.run_step(self, optimizer_closure)
        self.part = 0
        if loss is not None:
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)
            self.objective.after_step(progress)
        self.steps_taken += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint says what it is: plain values, readable with ``torch.load(weights_only=True)``."""
        self.faults.check_weights(self)
        checkpoint["faults"] = self.faults.state_dict()
        checkpoint["config"] = self.config
        checkpoint["progress"] = self.progress._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "faults" in checkpoint:  # not in those of earlier versions
            self.faults.load_state_dict(checkpoint["faults"])

"""Defines the one LightningModule. It trains any objective and names no method."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.core.seeding import derive_seed
from unlabeled.data.companions import NeedsCompanions
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.errors import UserError
from unlabeled.objective import AfterBackward, Batch, Objective, Output, Plan, Progress, Support
from unlabeled.optimizers import OptimizerConfig
from unlabeled.training.machine.overlap import Overlap
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import Views

_SUPPORT, _COMPANIONS = 0x5099, 0xC0B2  # give labelled images and companions other random draws than the batch


class StepGuard(Protocol):
    """Decides which steps are taken. ``training.faults.guard.NonFiniteGuard`` implements it and imports this module."""

    skipped: int  # steps not taken so far
    in_a_row: int  # of them, up to the last step
    folder: Path  # for the records of skipped steps

    def prepare(self, module: "Pretraining") -> None: ...
    def begin(self, module: "Pretraining", batch: Batch) -> None: ...
    def note(self, loss: Tensor) -> None: ...
    def allows_step(self, module: "Pretraining") -> bool: ...
    def end_step(self, module: "Pretraining") -> None: ...
    def settle(self, module: "Pretraining") -> None: ...
    def check_weights(self, module: "Pretraining") -> None: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Pretraining(pl.LightningModule):
    """Trains an objective: makes views on the device, computes the loss, takes the step, updates the objective.

    For Lightning one optimizer step is a call of :meth:`optimizer_step`. The last batch of the step is computed inside
    it: views, loss and gradients by :meth:`training_step`, then the check of the guard, then the optimizer. On a GPU
    the guard does not wait for the result of its check; what is written, a number or a state, waits for it.

    Args:
        objective: the method, with its backbone.
        views: makes the views of a batch.
        optimizer: optimizer, learning rate schedule and weight decay.
        plan: the data that the run gives its objective.
        accumulate: batches whose gradients are averaged in a step.
        total_steps, steps_per_epoch: of the run, in optimizer steps.
        seed: of every random draw.
        log_every_n_steps: how often metrics are read from the device and written.
        config: the run's resolved configuration as a plain dict; it is saved in each checkpoint.
        faults: decides which steps are taken.
    """

    def __init__(
        self,
        objective: Objective,
        views: Views,
        optimizer: OptimizerConfig,
        plan: Plan,
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
        self.optimizer_config, self.plan, self.accumulate = optimizer, plan, accumulate
        self.batch_size = plan.batch_size  # over all processes
        companions = objective.companions if isinstance(objective, NeedsCompanions) else None
        # views of the batch, the first ones; None: all
        self.views_of_batch = None if companions is None else companions.of_batch(views.count)
        self.total_steps, self.steps_per_epoch, self.seed = total_steps, steps_per_epoch, seed
        self.log_every_n_steps, self.config, self.faults = log_every_n_steps, config, faults
        # callbacks that read each output, with its graph
        self.output_hooks: list[Callable[[Batch, Output], None]] = []
        self.overlap: Overlap | None = None  # with which views are made ahead on a GPU
        self.part = 0  # batches since the last optimizer step
        self.again: int | None = None  # number of an earlier step, while it is computed again
        self.data_identity: dict[str, Any] | None = None  # of the training split; known to the first process
        self.images: int | None = None  # that are put in order, of which damaged ones may have been left out
        self.classes: list[str] | None = None  # names of the outputs of the method's own classifier, if it has one
        self.weights: dict[str, Any] | None = None  # record of the weights that the run started from
        self.teacher: dict[str, Any] | None = None  # record of the trained network that the objective learns from
        self.steps_taken = 0  # by this process, since it was started
        self.logs_next_step = True  # whether the metrics of the next step are logged

    @property
    def progress(self) -> Progress:
        """Returns the progress of the run; ``step`` counts the optimizer steps that are done."""
        step = self.global_step if self.again is None else self.again
        return Progress(step, self.total_steps, self.steps_per_epoch, self.seed, self.part, self.accumulate)

    def is_due(self, every_n_epochs: int) -> bool:
        """Returns whether the last step ended a multiple of so many epochs, or the run; for callbacks after a batch.

        For Lightning a run is one long epoch, so that it stops and resumes in the same way after any step.
        """
        step = self.global_step
        return self.part == 0 and (step % (every_n_epochs * self.steps_per_epoch) == 0 or step == self.total_steps)

    def is_written(self, step: int) -> bool:
        """Returns whether the metrics of a step (counted from 1) are logged: every n steps, and the first and last."""
        return step in (1, self.total_steps) or step % self.log_every_n_steps == 0

    @property
    def learning_rate(self) -> float:
        """Returns the learning rate of the next step."""
        return self.optimizer_config.lr_at(self.progress, self.images_per_step)

    @property
    def images_per_step(self) -> int:
        """Returns the number of images in a step, over all processes and batches."""
        return self.batch_size * self.accumulate

    def configure_model(self) -> None:
        """Shards the modules. Lightning calls it once the process group exists."""
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.cut(self.objective)

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer_config.build(self.objective, self.images_per_step)

    def on_train_start(self) -> None:
        self.logs_next_step = self.is_written(self.global_step + 1)
        self.faults.prepare(self)

    def on_train_end(self) -> None:
        self.faults.settle(self)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        self.faults.begin(self, batch)
        output = self.output_of(batch)
        self.faults.note(output.loss)
        for hook in self.output_hooks:
            hook(batch, output)
        self.part += 1
        # Reading a loss waits for the device.
        if self.part == self.accumulate and self.logs_next_step:
            metrics = {"loss": output.loss, **output.metrics, "learning_rate": torch.tensor(self.learning_rate)}
            metrics["skipped_steps"] = torch.tensor(float(self.faults.skipped))
            self.write({f"train/{name}": value for name, value in metrics.items()}, self.global_step + 1)
        return {"loss": output.loss, "features": output.features, "labels": batch.labels}

    def output_of(self, batch: Batch) -> Output:
        """Returns the objective's output for the next batch. Repeated calls give the same result."""
        progress = self.progress
        # Dropout and stochastic depth use the global random state. Seed it by the step, so that a resumed
        # run draws the same, and by the process, so that two do not drop the same units: these draws, and no others,
        # depend on the number of processes.
        torch.manual_seed(derive_seed(self.seed, progress.batch, self.global_rank))
        with nullcontext() if self.overlap is None else self.overlap.views_ahead():
            views = self.views_of(batch, self.view_key(batch), self.views_of_batch)
            support = None if batch.support is None else self._support_with_views(batch.support)
            companions = None if batch.companions is None else self._companions_with_views(batch.companions)
            given = batch._replace(views=views, support=support, companions=companions)
        if self.overlap is not None:
            self.overlap.hand_over(given)
        output: Output = self.objective(given, progress)
        # a network in float64, as tests have it, has a loss in float64; half precision is never enough for a loss
        own = next((parameter.dtype for parameter in self.objective.parameters()), torch.float32)
        wanted = torch.float64 if own == torch.float64 else torch.float32
        if output.loss.dtype != wanted:
            name = type(self.objective).__name__
            kind, needed = (str(dtype).removeprefix("torch.") for dtype in (output.loss.dtype, wanted))
            raise UserError(
                f"objective: the loss of {name} is {kind}, and must be {needed} whatever the network runs in: decorate "
                "its function with unlabeled.objectives.parts.precision.full_precision"
            )
        return output

    def view_key(self, batch: Batch) -> ViewKey:
        """Returns the key of the views' random draws: (seed, batch) and the position in the global batch."""
        return ViewKey(self.seed, self.progress.batch, self.global_rank * len(batch.images), self.batch_size)

    def views_of(
        self, images: Batch | Support, key: ViewKey, first: int | None = None, skipped: int = 0
    ) -> tuple[Tensor, ...]:
        """Makes the views on the device in full precision: float [B, 3, h, w] each; which, as :class:`Views` says."""
        with torch.autocast(images.images.device.type, enabled=False):
            more = {"skipped": skipped} if skipped else {}  # views of one's own need not know it
            views = self.views(images.images, images.ids, key, first=first, sizes=images.sizes, **more)
        return tuple(view.to(memory_format=torch.channels_last) for view in views)

    def _support_with_views(self, support: Support) -> Support | None:
        """Adds views to the labelled images: those of the batch's first views, with random draws of their own."""
        if not isinstance(self.objective, NeedsSupport):
            return None
        wanted, images = self.objective.support, len(support.images)
        seed = derive_seed(self.seed, _SUPPORT)
        key = ViewKey(seed, self.progress.batch, self.global_rank * images, wanted.images_per_step)
        return support._replace(views=self.views_of(support, key, wanted.views))

    def _companions_with_views(self, companions: Batch) -> Batch | None:
        """Adds views to the companions, as the objective asks, with random draws of their own."""
        if not isinstance(self.objective, NeedsCompanions):
            return None
        own = self.objective.companions.own(self.views.count)
        key = self.view_key(companions)._replace(seed=derive_seed(self.seed, _COMPANIONS))
        return companions._replace(views=self.views_of(companions, key, own.stop, own.start))

    def write(self, metrics: dict[str, Tensor], step: int) -> None:
        """Logs scalars, averaged over the processes, to every logger. ``step`` counts this step too."""
        self.faults.settle(self)  # lines about earlier steps come first
        reduce = self.trainer.strategy.reduce
        mean = {name: float(reduce(value.detach().to(self.device))) for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics({"epoch": step / self.steps_per_epoch, **mean}, step)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if isinstance(self.objective, AfterBackward):
            self.objective.after_backward(self.progress)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, which refuses a fused optimizer in bf16-mixed too, where nothing scales the gradients."""
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Takes one step at the scheduled learning rate, then calls the objective's own update for that step.

        If the loss or a gradient is not finite, neither is done: the step counts, but changes nothing.
        """
        step = self.global_step  # steps that are done
        loss = optimizer_closure()  # training_step and backward of the step's last batch
        good, self.part = self.faults.allows_step(self), 0
        if good:
            progress = self.progress
            self.optimizer_config.set_step(optimizer, progress, self.images_per_step)
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)
            self.objective.after_step(progress)
        self.steps_taken += 1
        self.logs_next_step = self.is_written(step + 2)
        self.faults.end_step(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what identifies the checkpoint, as plain values that ``torch.load(weights_only=True)`` can read."""
        self.faults.check_weights(self)
        checkpoint["faults"] = self.faults.state_dict()
        checkpoint["config"] = self.config
        checkpoint["data"] = self.data_identity
        if self.weights is not None:
            checkpoint["weights"] = self.weights
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher
        checkpoint["progress"] = self.progress._asdict()
        if self.images is not None:
            checkpoint["images"] = self.images
        if self.classes is not None:
            checkpoint["classes"] = self.classes
        if self.objective.product() is not self.objective.backbone:
            checkpoint["product"] = name_of_product(self.objective)
        if self.objective.uses_labels:
            checkpoint["uses_labels"] = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.weights = checkpoint.get("weights")
        if "faults" in checkpoint:  # not in those of earlier versions
            self.faults.load_state_dict(checkpoint["faults"])


def name_of_product(objective: Objective) -> str:
    """Returns the path of the network that is evaluated among the objective's modules."""
    product, named = objective.product(), objective.named_modules()
    return next(str(name) for name, module in named if module is product)

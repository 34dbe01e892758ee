"""Shows one progress bar for the whole run: step, loss, learning rate, images per second and the time left."""

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from unlabeled.training.pretraining import Pretraining

WIDE = 100  # characters from which on everything has room; on 80 no bar and no time that has passed


class RunProgress(pl.callbacks.ProgressBar):
    """Shows a live bar on a terminal, one line in a notebook, or a line per epoch where output goes to a file."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console()
        self._bar: Progress | None = None
        self._first = self._since = (0, 0.0)  # step and time of the first and of the last reading
        self._line = "pretraining"

    def disable(self) -> None:
        """Turns output off. Lightning calls this on every process but the first."""
        self.console = Console(quiet=True)

    def enable(self) -> None:
        self.console = Console()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretraining)
        self._first = self._since = (trainer.global_step, time.monotonic())
        wide = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("elapsed,"))
        columns = (
            TextColumn("{task.description}"),
            *(wide if self.console.width >= WIDE else (MofNCompleteColumn(),)),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        if self.console.is_terminal and not self.console.is_jupyter:
            self._bar = Progress(*columns, console=self.console)
            self._bar.add_task("pretraining", total=pl_module.total_steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        step = trainer.global_step
        if pl_module.part:  # gradients are being accumulated
            return
        loss = outputs["loss"]  # read where it is printed alone: that waits for the GPU
        if self.console.is_jupyter:
            if pl_module.is_written(step) or step == pl_module.total_steps:
                end = "\n" if step == pl_module.total_steps else ""
                print(f"\r{self._epoch_line(pl_module, loss, step)}", end=end, flush=True)
        elif self._bar is not None:
            if pl_module.is_written(step):
                self._line = self._numbers(pl_module, loss, step)
            self._bar.update(self._bar.task_ids[0], completed=step, description=self._line)
        elif pl_module.is_due(every_n_epochs=1):
            self.console.print(self._epoch_line(pl_module, loss, step), highlight=False)

    def _numbers(self, module: Pretraining, loss: Tensor, step: int) -> str:
        """Returns the numbers of the last step, and the speed since the last printed one."""
        last_step, last_time = self._since
        self._since = (step, time.monotonic())
        speed = (step - last_step) * module.images_per_step / (self._since[1] - last_time)
        used = module.optimizer_config.lr_at(module.progress._replace(step=step - 1, part=0), module.images_per_step)
        whole = float(loss) * module.accumulate  # by which Lightning has divided it
        return f"loss {whole:.3f}  lr {used:.2e}  {speed:,.0f} images/s"

    def _epoch_line(self, module: Pretraining, loss: Tensor, step: int) -> str:
        first_step, first_time = self._first
        left = (time.monotonic() - first_time) / (step - first_step) * (module.total_steps - step)
        epoch, numbers = -(-step // module.steps_per_epoch), self._numbers(module, loss, step)
        return f"epoch {epoch}  step {step}/{module.total_steps}  {numbers}  {timedelta(seconds=round(left))} left"

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

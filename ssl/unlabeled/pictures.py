"""Pictures while training: what a method that paints makes of some images, in files and in the loggers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from unlabeled.data.canvas import on_device
from unlabeled.data.module import DataModule
from unlabeled.evaluation.features import eval_mode
from unlabeled.objective import Batch
from unlabeled.pretraining import Pretraining

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_TILE = 128  # pixels; smaller images are enlarged by a whole number
TITLE, GAP = 16, 4  # pixels


class Pictures(pl.Callback):
    """Every n epochs, one row per image and one column per name of ``Objective.pictures``; nothing where it has none.

    The same training images all along, seen as evaluation sees them, and the same random draws, so that pictures of
    different epochs compare. Written to ``run_dir/pictures/step-N.png`` by the first process alone.

    Args:
        every_n_epochs: how often; after the last epoch too.
        images: how many.
    """

    def __init__(self, every_n_epochs: int, images: int) -> None:
        self.every_n_epochs, self.num_images = every_n_epochs, images

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if not trainer.is_global_zero or not pl_module.is_due(self.every_n_epochs):
            return
        columns = self.make(pl_module, trainer.datamodule, trainer.strategy.root_device)  # type: ignore[attr-defined]
        if columns:
            folder = Path(trainer.default_root_dir) / "pictures"
            folder.mkdir(exist_ok=True)
            picture = draw(columns)
            picture.save(folder / f"step-{trainer.global_step:08d}.png")
            log_picture(trainer.loggers, picture, trainer.global_step)

    @torch.no_grad()
    def make(self, module: Pretraining, data: DataModule, device: torch.device) -> dict[str, Tensor]:
        """Columns [N, 3, h, w] in [0, 1] by their names; the network and its mode stay as they are."""
        positions = torch.randperm(len(data.train.labels), generator=torch.Generator().manual_seed(module.seed))
        for batch in data.batches(data.train, positions[: self.num_images], self.num_images):
            images, sizes = on_device(batch, device)
            view = module.views.plain(images, sizes)
            seen = Batch(images, batch.ids, batch.labels, (view,), sizes=sizes)
            with eval_mode(module.objective), torch.autocast(device.type, enabled=False):
                columns = module.objective.pictures(seen, module.seed)
            return {name: module.views.as_pixels(column) for name, column in columns.items()}
        return {}


def draw(columns: dict[str, Tensor]) -> "Image":
    """A titled column [N, 3, h, w] in [0, 1] beside the other."""
    from PIL import Image, ImageDraw

    tiles = torch.stack(list(columns.values()), 1)  # [N, columns, 3, h, w]
    size = tiles.shape[-1]
    tiles = _enlarged(tiles, max(1, -(-SMALLEST_TILE // size)))
    tiles = torch.nn.functional.pad(tiles, (0, GAP, 0, GAP), value=1.0)
    rows, across, channels, height, width = tiles.shape
    page = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, across * width, channels)
    page = torch.nn.functional.pad(page, (0, 0, 0, 0, TITLE, 0), value=1.0)
    picture = Image.fromarray((page * 255).round().byte().cpu().numpy())
    for number, name in enumerate(columns):
        ImageDraw.Draw(picture).text((number * width + 2, 2), name, fill=(0, 0, 0))
    return picture


def _enlarged(tiles: Tensor, times: int) -> Tensor:
    return tiles.repeat_interleave(times, -1).repeat_interleave(times, -2)


def log_picture(loggers: Sequence[Any], picture: "Image", step: int) -> None:
    """Hand it to the loggers that take pictures: Weights & Biases and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("pictures", [picture], step)
        if isinstance(logger, TensorBoardLogger):
            import numpy as np

            logger.experiment.add_image("pictures", np.asarray(picture), step, dataformats="HWC")

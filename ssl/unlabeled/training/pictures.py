"""Makes pictures of a run, for files and loggers: its views, and visualizations of its network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from unlabeled.core.ranges import Count
from unlabeled.core.writing import Unwritable, save_picture
from unlabeled.data.loaders import Resumable
from unlabeled.data.module import DataModule
from unlabeled.data.padding import batch_to_device
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, eval_mode, extract, full_float32
from unlabeled.objective import Batch, HasPrototypes, HasVisualization, Objective
from unlabeled.pages.draw import draw_columns, shrink_images
from unlabeled.pages.feature_map import draw_map
from unlabeled.training.pretraining import Pretraining

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_TILE = 160  # pixels of the longer side, in the pictures of a run
MAPPED = 500  # images in the map; more would hide each other
NEAREST, PIXELS = 10, 128  # images of each prototype; longest side of a stored image, pixels
BATCH = 100  # images in a forward pass


class Pictures(pl.Callback):
    """Writes four pictures to ``run_dir/pictures/NAME-step-N.png`` and hands each to the loggers that take pictures.

    ``views`` shows images of the first batch and their views, as in the first step. The others are made every n epochs
    from the same training images, seen as in evaluation, so that epochs can be compared: ``feature_map``;
    ``reconstructions`` if the method has them (``HasVisualization``); ``prototypes`` if the method has some
    (``HasPrototypes``): those nearest to most images, with the images nearest to each.

    Only the first process makes them; with FSDP it lacks the weights, and makes only the views. The network, its mode
    and the random state stay as they are.

    Args:
        every_n_epochs: how often; also after the last epoch. None: only the views.
        images: rows of each picture, except the map, which has 500 images.
        pool: images among which the nearest to a prototype are found.

    Raises:
        UserError: a number is less than 1.
    """

    def __init__(self, every_n_epochs: Count | None, images: Count, pool: Count) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "images": images, "pool": pool}.items():
            if value is not None and value < 1:
                raise UserError(f"pictures.{name}={value}: must be at least 1; pictures=null makes none")
        self.every_n_epochs, self.num_images, self.pool = every_n_epochs, images, pool

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run is one epoch to Lightning. Not in on_train_start: there the loggers have not yet begun their session.
        assert isinstance(pl_module, Pretraining)
        if trainer.is_global_zero and trainer.global_step == 0 and not trainer.should_stop:
            loader: Resumable = trainer.train_dataloader  # type: ignore[assignment]
            batch = trainer.strategy.batch_to_device(loader.peek())
            save_and_log(trainer, "views", draw_columns(self.views(pl_module, batch)))
            if self.every_n_epochs is not None and isinstance(trainer.strategy, FullySharded):
                print("pictures: only those of the views; the others need all weights, which with fsdp no process has")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if not trainer.is_global_zero or isinstance(trainer.strategy, FullySharded):
            return
        if self.every_n_epochs is None or not pl_module.is_due(self.every_n_epochs):
            return
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        device = trainer.strategy.root_device
        reconstructions = self.reconstructions(pl_module, data, device)
        if reconstructions:
            save_and_log(trainer, "reconstructions", draw_columns(reconstructions))
        objective = pl_module.objective
        count = self.pool if isinstance(objective, HasPrototypes) else MAPPED
        pixels, features = self.pixels_and_features(pl_module, data, device, count)
        if not features.x.isfinite().all():
            return  # a picture must not stop a run; code that computes numbers reports the error
        few = features.rows(torch.arange(len(features.x)) < MAPPED)
        save_and_log(trainer, "feature_map", draw_map(pixels[:MAPPED], few.x, few.labels, data.train.classes))
        prototypes = nearest_images(objective, features.x.to(device), pixels, self.num_images)
        if prototypes is not None:
            save_and_log(trainer, "prototypes", draw_columns(*prototypes))

    def views(self, module: Pretraining, batch: Batch) -> dict[str, Tensor]:
        """Returns columns [N, 3, h, w] in [0, 1]: images of the next batch, and their views."""
        made = module.views.uncompiled()
        rows = slice(self.num_images)
        images, sizes = batch.images[rows], None if batch.sizes is None else batch.sizes[rows]
        views = made(images, batch.ids[rows], module.view_key(batch), sizes=sizes)
        columns = {"image": made.evaluation_view(images, sizes)} | {
            f"view {n}": view for n, view in enumerate(views, 1)
        }
        return {name: _squared(made.shown(column), made.size) for name, column in columns.items()}

    @torch.no_grad()
    def reconstructions(self, module: Pretraining, data: DataModule, device: torch.device) -> dict[str, Tensor]:
        """Returns the columns [N, 3, h, w] in [0, 1] of ``HasVisualization``; none if the method has no such thing."""
        objective = module.objective
        if not isinstance(objective, HasVisualization):
            return {}
        for batch in data.batches(data.train, self._positions(module, data, self.num_images), self.num_images):
            images, sizes = batch_to_device(batch, device)
            view = module.views.evaluation_view(images, sizes)
            seen = Batch(images, batch.ids, batch.labels, (view,), sizes=sizes)
            with eval_mode(objective), torch.autocast(device.type, enabled=False):
                columns = objective.visualize(seen, module.seed)
            return {name: shrink_images(module.views.shown(column), LARGEST_TILE) for name, column in columns.items()}
        return {}

    def pixels_and_features(
        self, module: Pretraining, data: DataModule, device: torch.device, count: int
    ) -> tuple[Tensor, Features]:
        """Returns up to ``count`` small images, uint8 [N, 3, h, w], and their features, on the CPU."""
        pixels = []

        def plain(images: Tensor, sizes: Tensor | None) -> Tensor:
            seen = module.views.evaluation_view(images, sizes)
            pixels.append((shrink_images(module.views.shown(seen), PIXELS) * 255).round().byte().cpu())
            return seen

        batches = data.batches(data.train, self._positions(module, data, count), BATCH)
        precision = str(module.trainer.precision)
        features = extract(module.objective.product(), batches, plain, device, precision, check_finite=False)
        return torch.cat(pixels), features

    def _positions(self, module: Pretraining, data: DataModule, count: int) -> Tensor:
        return torch.randperm(len(data.train.labels), generator=torch.Generator().manual_seed(module.seed))[:count]


@torch.no_grad()
def nearest_images(
    objective: Objective, x: Tensor, pixels: Tensor, rows: int
) -> tuple[dict[str, Tensor], list[str]] | None:
    """Returns the prototypes that are nearest to most of the images, with the images nearest to each.

    Args:
        objective: stays as it is.
        x: features of the images [N, num_features], on its device.
        pixels: of the images uint8 [N, 3, h, w], on the CPU.
        rows: how many prototypes, at most.

    Returns:
        Columns [rows, 3, h, w], the nearest first, and a caption for each row; None if there are no prototypes.
    """
    if not isinstance(objective, HasPrototypes):
        return None
    with eval_mode(objective), full_float32(x.device):
        scores = objective.prototype_scores(x).float().cpu()
    counts = scores.argmax(1).bincount(minlength=scores.shape[1])
    chosen = counts.argsort(descending=True, stable=True)[:rows]
    cosines, nearest = scores[:, chosen].topk(min(NEAREST, len(scores)), dim=0)  # [images, rows]
    names = ["nearest", *(f"{number}." for number in range(2, NEAREST + 1))]
    columns = {name: pixels[each].float() / 255 for name, each in zip(names, nearest, strict=False)}
    captions = [
        f"prototype {int(prototype)}\nnearest to {int(counts[prototype])}\nof {len(scores):,} images"
        f"\ncosine {first:.2f} to {last:.2f}"
        for prototype, first, last in zip(chosen, cosines[0].tolist(), cosines[-1].tolist(), strict=True)
    ]
    return columns, captions


def _squared(images: Tensor, side: int) -> Tensor:
    """Resizes [N, 3, h, w] to the size of the largest views without smoothing; at most ``LARGEST_TILE``."""
    side = min(side, LARGEST_TILE)
    return torch.nn.functional.interpolate(shrink_images(images, side), (side, side), mode="nearest-exact")


def save_and_log(trainer: pl.Trainer, name: str, picture: "Image") -> None:
    """Writes a picture to the run's folder and hands it to the loggers."""
    path = Path(trainer.default_root_dir) / "pictures" / f"{name}-step-{trainer.global_step:08d}.png"
    try:
        save_picture(path, picture)
    except Unwritable as error:  # must not stop the run; writing a checkpoint reports a full disk
        print(f"warning: {error}")
    log_picture(trainer.loggers, name, picture, trainer.global_step)


def log_picture(loggers: Sequence[Any], name: str, picture: "Image", step: int) -> None:
    """Hands a picture to the loggers that take pictures, Weights & Biases and TensorBoard, as ``pictures/NAME``."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name}", [picture], step)
        if isinstance(logger, TensorBoardLogger):
            import numpy as np

            logger.experiment.add_image(f"pictures/{name}", np.asarray(picture), step, dataformats="HWC")

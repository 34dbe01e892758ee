"""What stands beside the images of a run: companions of each, labelled images beside each batch, batches by class."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn

from unlabeled.core.writing import save_safetensors
from unlabeled.data.companions import NeedsCompanions
from unlabeled.data.labels import shared_names
from unlabeled.data.module import DataModule
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import first_alone
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import TensorCache, cache_folder
from unlabeled.evaluation.extractor import Extractor
from unlabeled.evaluation.features import apply_head
from unlabeled.evaluation.selection.mining import mined_neighbours
from unlabeled.objective import Backbone, Objective
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.views.pipeline import Views

FILE = "neighbours.safetensors"  # in the folder of the run


class Pretext(NamedTuple):
    """What a run starts from."""

    origin: str | None  # as ``weights`` names it; None: random weights
    projector: nn.Module | None  # from features to embeddings; None: features are compared


def attach_companions(
    config: DictConfig,
    data: DataModule,
    views: Views,
    objective: Objective,
    checkpoints: CheckpointFolder,
    trainer: pl.Trainer,
    pretext: Callable[[], Pretext],
) -> None:
    """Finds the neighbours of all training images where the objective asks for it, once in a run.

    The first process finds and writes them, the others wait and read. A run that goes on reads the same file.

    Raises:
        UserError: the file of a run that goes on is gone, or there are fewer images than neighbours.
    """
    if not isinstance(objective, NeedsCompanions) or not objective.companions.mined:
        return
    if config.plan_only:  # what a neighbour shows changes neither time nor memory
        data.attach_neighbours(torch.arange(len(data.splits.train))[:, None])
        return
    path = Path(config.run_dir) / FILE
    if checkpoints.find() is None:
        k, backbone = objective.companions.neighbours or 0, objective.backbone

        def mine() -> None:
            cache = TensorCache(cache_folder(config.cache), config.cache_gib)
            device, size = trainer.strategy.root_device, config.batch_size
            extractor = Extractor(data, views, device, "32-true", size, cache, unlabelled=True)
            _mine(path, extractor, backbone, pretext(), k)

        first_alone(mine)
    elif not path.is_file():
        raise UserError(f"{path}: is gone, the neighbours that this run began with; put it back, or give another name")
    data.attach_companions(replace(objective.companions, neighbours_file=str(path)))


def _mine(path: Path, extractor: Extractor, backbone: Backbone, pretext: Pretext, k: int) -> None:
    begun = time.monotonic()
    features, by = extractor(backbone, "train"), "features"
    if pretext.projector is not None:
        features, by = apply_head(pretext.projector, features), "embeddings"
    images = len(extractor.data.splits.train)
    save_safetensors(path, {"neighbours": mined_neighbours(features, images, k)})
    origin = f"weights={pretext.origin}" if pretext.origin else "RANDOM weights: give weights=RUN"
    seconds = time.monotonic() - begun
    print(f"the {k} nearest of each of {images:,} images, by the cosine of {by} of {origin}, took {seconds:.0f} s")


def attach_support(data: DataModule, objective: Objective, processes: int) -> None:
    """Let the data have companions and labelled images as the objective asks; the latter must not be test images.

    Companions that the run finds by itself come later, see :func:`attach_companions`.
    """
    if isinstance(objective, NeedsCompanions) and not objective.companions.mined:
        if objective.companions.neighbours_file is None and not objective.uses_labels:
            raise UserError(
                "objective.companions: images of one class take labels, and this objective uses none: give"
                " neighbours=20, or a neighbours_file"
            )
        data.attach_companions(objective.companions)
    if not isinstance(objective, NeedsSupport):
        return
    data.attach_support(objective.support, processes)
    if data.splits.test is not None and data.labels is not None:
        shared = shared_names(data.labels, data.splits.train, data.splits.test)
        if shared:
            raise UserError(f"objective.support: {len(shared)} labelled images are test images too, e.g. {shared[0]}")


def draw_by_class(data: DataModule, objective: Objective, images_per_class: int | None) -> None:
    """Let batches have so many images of each of their classes, for an objective that trains with labels."""
    if images_per_class is None:
        return
    if not objective.uses_labels:
        raise UserError(
            f"images_per_class={images_per_class}: batches by class need a method with labels, and"
            f" {type(objective).__name__} uses none: give objective=triplet or supcon, or leave images_per_class out"
        )
    data.draw_by_class(images_per_class)

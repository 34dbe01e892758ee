"""The companions of a run's images: listed in a file, of one class, or found by the network that it starts from."""

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
from unlabeled.data.module import DataModule
from unlabeled.distributed import local_only
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
        if trainer.is_global_zero:
            with local_only():
                cache = TensorCache(cache_folder(config.cache), config.cache_gib)
                device, size = trainer.strategy.root_device, config.batch_size
                extractor = Extractor(data, views, device, "32-true", size, cache, unlabelled=True)
                _mine(path, extractor, objective.backbone, pretext(), objective.companions.neighbours or 0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
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

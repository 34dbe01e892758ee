"""From a composed configuration to what trains a whole network on labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.backbones.small_maps import guard_small_maps
from unlabeled.commands.build.embedding import with_folder
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.run import build_data
from unlabeled.commands.build.trainer import resolve_precision
from unlabeled.commands.checks.former_run import with_absolute_paths
from unlabeled.data.module import DataModule
from unlabeled.errors import UserError
from unlabeled.evaluation.probe import Task
from unlabeled.evaluation.recipes.finetune import FineTune
from unlabeled.evaluation.task import make_tasks
from unlabeled.objective import Backbone
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone
from unlabeled.weights.starting.named import named_as_given


@dataclass(frozen=True)
class FineTuning:
    """A network, labelled images and how it is trained on them."""

    recipe: FineTune
    backbone: Backbone  # with the weights to start from
    data: DataModule
    views: Views
    task: Task
    device: torch.device
    precision: str
    config: Mapping[str, Any]  # backbone, views, data, seed: what a checkpoint says of itself


def build_finetuning(config: DictConfig, checkpoint: Checkpoint) -> FineTuning:
    """Builds the network, opens the images and makes the task.

    Args:
        config: as composed from ``conf/finetune.yaml``.
        checkpoint: to start from.

    Raises:
        UserError: what cannot work together, or there are no labels.
    """
    with named_as_given(checkpoint, config.weights):
        filled = complete_config(with_folder(config, checkpoint), checkpoint, ("data", "views", "backbone"))
        if filled.backbone.get("freeze"):
            filled.backbone.freeze = None  # the whole network is trained
        network = build_backbone(filled.backbone, filled.seed)
        backbone = load_backbone(checkpoint, network, any_size=config.weights is not None)
    views: Views = instantiate(filled.views)
    views.compiles = False
    backbone.check_size(views.size)
    recipe = instantiate(_recipe(config))
    data = build_data(OmegaConf.create({**filled, "batch_size": recipe.training.batch_size}))
    train = data.splits.train
    views.require_channels(train)
    if not bool((train.labels >= 0).any()):
        raise UserError(
            "data: no training image has a label; give data=PATH of class folders or of a list, and fill in the column"
            " label of a list that unlabeled label wrote"
        )
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    device, precision = torch.device("cuda" if gpu else "cpu"), resolve_precision(config.precision, config.accelerator)
    if device.type == "cpu" and precision == "bf16-mixed":
        guard_small_maps(backbone, views.size)
    task = make_tasks(data, views, len(train.classes), device, precision)(backbone)
    plain = with_absolute_paths(OmegaConf.to_container(filled, resolve=True))
    kept = {key: plain[key] for key in ("backbone", "views", "data", "seed")}
    return FineTuning(recipe, backbone, data, views, task, device, precision, kept)


def _recipe(config: DictConfig) -> DictConfig:
    """The recipe with the labels that the key ``labels`` names."""
    if config.labels in (None, "all"):
        return config.recipe  # type: ignore[no-any-return]
    if config.recipe.per_class is not None or config.recipe.labels_file is not None:
        raise UserError("labels: names a list, leave recipe.per_class and recipe.labels_file out")
    return OmegaConf.create({**config.recipe, "labels_file": config.labels, "fraction": None})

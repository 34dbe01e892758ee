"""From a composed configuration to detectors and their training."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from unlabeled.backbones.vit import ViT
from unlabeled.commands.build.trainer import resolve_precision
from unlabeled.commands.build.transfer import Network
from unlabeled.core.run_config import differences
from unlabeled.core.seeding import derive_seed
from unlabeled.downstream.detection.annotated.batches import Jittered, Steps, TrainingBatches
from unlabeled.downstream.detection.annotated.coco import read_coco
from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.annotated.voc import read_voc, years_of
from unlabeled.downstream.detection.model import Inputs, NeckName, detector
from unlabeled.downstream.detection.networks.heads import VITDET, Heads
from unlabeled.downstream.detection.recipe import DetectionRecipe
from unlabeled.downstream.detection.training import DetectionTraining, States
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.training.checkpoints import CheckpointFolder

Log = Callable[[str], None]


def read_images(given: str) -> tuple[DetectionImages, DetectionImages]:
    """Opens a folder of images with boxes: COCO's form or Pascal VOC's. Raises UserError naming what is wrong."""
    folder = Path(os.path.abspath(os.path.expanduser(given)))  # VOC's years are known by their folders' names
    if not folder.is_dir():
        raise UserError(f"data={given}: no such folder")
    return read_voc(folder) if years_of(folder) else read_coco(folder, f"data={Path(given).expanduser()}")


def build_recipe(config: DictConfig) -> DetectionRecipe:
    """Makes the recipe. Raises UserError for numbers that cannot work together."""
    recipe: DetectionRecipe = instantiate(config.detection)
    recipe.check()
    return recipe


def build_detector(network: Network, recipe: DetectionRecipe, classes: int, masks: bool, seed: int) -> nn.Module:
    """Builds a detector on a network's backbone, which becomes a part of it; its heads are drawn from the seed.

    Raises:
        UserError: images of other channels, or a neck that does not suit the backbone.
    """
    backbone, neck = network.backbone, neck_of(network.backbone, recipe)
    if backbone.channels != 3:
        raise UserError(f"{network.name}: takes images of {backbone.channels} channels; a detector's have 3")
    mean, std = colours_of(network)
    heads = VITDET if neck == "vitdet" else Heads()
    given = {"norm": recipe.head_norm, "anchor": recipe.anchor}
    given |= {"width": recipe.width, "hidden": recipe.width and 4 * recipe.width}
    given |= {"proposals": recipe.proposals, "regions": recipe.regions}
    heads = Heads(**vars(heads) | {key: value for key, value in given.items() if value is not None})
    square = recipe.size if neck == "vitdet" else None
    inputs = Inputs((recipe.test_size,), recipe.longest, False, square, mean, std)
    torch.manual_seed(derive_seed(seed, 3))
    dropped = recipe.drop_path if neck == "vitdet" or recipe.drop_path else None
    settings: dict[str, Any] = {"inputs": inputs, "heads": heads, "batchnorm": recipe.batchnorm, "drop_path": dropped}
    try:
        return detector(backbone, neck=neck, classes=classes, masks=masks, **settings)
    except UserError as error:
        raise UserError(f"detection.{error}") from error


def neck_of(backbone: Backbone, recipe: DetectionRecipe) -> NeckName:
    """Returns the recipe's neck, or for ``auto`` the one that suits a backbone."""
    if recipe.neck != "auto":
        return recipe.neck
    return "vitdet" if isinstance(backbone, ViT) else "fpn"


def colours_of(network: Network) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the colours, as the network was trained."""
    return tuple(network.views.mean or (0.0,) * 3), tuple(network.views.std or (1.0,) * 3)


def train_detector(
    made: nn.Module,
    network: Network,
    recipe: DetectionRecipe,
    images: DetectionImages,
    masks: bool,
    asked: dict[str, Any],
    folder: Path,
    facts: dict[str, Any],
    log: Log,
) -> DetectionTraining:
    """Trains a detector in place, from the state in ``folder`` if there is one.

    Args:
        made: the detector.
        network: its backbone, with the colours that it was trained with.
        recipe: the settings.
        images: to train on.
        masks: whether they have masks that are trained on.
        asked: seed, save_every, num_workers, accelerator and precision.
        folder: for the states.
        facts: plain values that a state must have to go on from it.
        log: takes lines.

    Raises:
        UserError: the state is of another training, or the training diverges.
    """
    states = CheckpointFolder(folder, 1)
    begun = states.find()
    training = DetectionTraining(made, recipe, asked["seed"], facts, log)
    state = None if begun is None else torch.load(begun, map_location="cpu", weights_only=True)
    if state is not None:
        _check_same(state.get("facts"), facts, folder)
        log(f"goes on from step {state['global_step']:,}")
    if state is not None and state["global_step"] >= recipe.steps:
        training.load_state_dict(state["state_dict"])
        training.on_load_checkpoint(state)
        return training
    trainer = build_trainer(asked, States(states, asked["save_every"], recipe.steps, log), folder)
    samples = Jittered(images, recipe.jitter(colours_of(network)[0]), masks)
    steps = Steps(len(images), recipe.batch_size, recipe.steps, asked["seed"], lambda: trainer.global_step)
    trainer.fit(training, TrainingBatches(samples, steps, asked["num_workers"]), ckpt_path=begun)
    return training


def _check_same(before: Any, now: dict[str, Any], folder: Path) -> None:
    """Raises UserError where a state is of a training with other settings, images or weights."""
    if differing := differences(before, now):
        raise UserError(
            f"{folder} holds the state of a detector with another {', '.join(differing[:5])}; give another out=…, or "
            "remove that folder"
        )


def build_trainer(asked: dict[str, Any], states: States, folder: Path) -> pl.Trainer:
    """Returns the trainer of one detector: one process, one long epoch, states of our own."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips, no advertisements
    warnings.filterwarnings("ignore", ".*num_workers.*")  # the order of images is our own
    warnings.filterwarnings("ignore", ".*LeafSpec")  # of Lightning 2.6 with torch 2.14; nobody's concern here
    gpu = asked["accelerator"] != "cpu" and torch.cuda.is_available()
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision=resolve_precision(asked["precision"], asked["accelerator"]),  # type: ignore[arg-type]
        callbacks=[states],
        default_root_dir=folder,
        max_epochs=1,
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

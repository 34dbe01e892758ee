"""Semantic segmentation by dense features: ``unlabeled segment run=outputs/NAME data=FOLDER``."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.trainer import resolve_precision
from unlabeled.commands.build.transfer import Network, build_networks
from unlabeled.commands.evaluate.judged import folder_of_page, given_network, page_of_all_tasks
from unlabeled.commands.evaluate.transfer import name_of
from unlabeled.core.environment import git_state, machine, versions
from unlabeled.core.writing import kept_anyway
from unlabeled.downstream.segmentation.dilation import dilated
from unlabeled.downstream.segmentation.finetuning import FineTuning, TunedSegmenter, published_settings
from unlabeled.downstream.segmentation.label_maps import LabelledImages, count_classes, read_splits
from unlabeled.downstream.segmentation.linear_segmenter import LinearSegmenter, map_width
from unlabeled.downstream.segmentation.patches import neighbours_of
from unlabeled.downstream.segmentation.segment_report import Segmentation, coloured, write_segmentation
from unlabeled.downstream.segmentation.training import (
    Learner,
    Normalise,
    SegmentationRecipe,
    measure,
    train_segmenter,
)
from unlabeled.errors import UserError
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.objective import Backbone
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint
from unlabeled.weights.starting.named import read_named

Logits = Callable[[Tensor], Tensor]
SHOWN_SIDE = 128  # pixels of a drawn image


def segment(
    config: DictConfig,
    resolved: dict[str, Any],
    log: Callable[[str], None] = print,
    command: str | None = None,
    loaded: Network | None = None,
) -> Segmentation:
    """Trains and measures heads, measures neighbours of patches, and writes the page.

    Args:
        config: as composed from ``conf/segment.yaml``.
        resolved: the same as plain values.
        log: takes lines.
        command: for the page; None: what was typed.
        loaded: from Python, in place of one that ``config`` names.

    Raises:
        UserError: a mistake, a network without dense features, or images without label maps.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    train, test, names = _images(resolved)
    networks, checkpoint = _networks(config, resolved, loaded)
    recipe = _recipe(resolved, networks[0].views.size)
    found = Segmentation(names, {}, {})
    _draw_truth(found, test, resolved["shown"])
    gpu = resolved["accelerator"] != "cpu" and torch.cuda.is_available()
    for network in networks:
        _check(network, resolved, recipe.size)
    work = _Work(found, train, test, recipe, resolved, torch.device("cuda" if gpu else "cpu"), log)
    for network in networks:
        work.judge(network)
    facts = {
        "command": command or typed_command(),
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "checkpoint": checkpoint_provenance(checkpoint) if checkpoint else given_network(networks[0]),
        "images": {"train": len(train), "test": len(test)},
        "settings": vars(recipe) | {key: resolved[key] for key in SETTINGS},
        "fine_tuning": work.tuned,
        "machine": machine(),
        "git": git_state(),
        "versions": versions(),
    }
    folder = folder_of_page(resolved["out"], checkpoint, "segment")
    found.page = kept_anyway(folder, lambda place: write_segmentation(place, found, facts))
    log(f"\n{found.headline}\nthe page is {found.page}")
    page_of_all_tasks(found.page, "segment", log)
    return found


SETTINGS = ("folder", "ignore", "k", "bank", "dilate")


def _networks(
    config: DictConfig, asked: dict[str, Any], loaded: Network | None
) -> tuple[list[Network], Checkpoint | None]:
    """Returns the network that is asked about with its random start, and its checkpoint where it has one."""
    if loaded is not None:
        return [loaded], None
    checkpoint = read_named(asked["run"], asked["checkpoint"], asked["weights"])
    return build_networks(config, checkpoint, name_of(asked), asked["random"]), checkpoint


def _images(asked: dict[str, Any]) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """Returns train, test and the names of all classes."""
    train, test, names = read_splits(Path(asked["folder"]).expanduser(), asked["ignore"], asked["zero_is_no_class"])
    classes = max(count_classes(train), count_classes(test))
    if classes < 2:
        raise UserError(
            f"data={asked['folder']}: the label maps have the class 0 alone, and pixels of ignore={asked['ignore']}"
            " have none: number the classes from 0 on; of masks with 0 and 255 make 0 and 1"
        )
    if names and len(names) < classes:
        raise UserError(
            f"data={asked['folder']}: classes.txt names {len(names)} classes, and the label maps have numbers up to"
            f" {classes - 1}: name {classes}, one a line, or remove the file; pixels of"
            f" ignore={asked['ignore']} have no class"
        )
    return train, test, [*names, *(str(each) for each in range(len(names), classes))]


def _recipe(asked: dict[str, Any], trained: int) -> SegmentationRecipe:
    size = asked["size"] or trained
    stride = asked["stride"] or max(1, 2 * size // 3)
    if asked["warmup_steps"] >= asked["steps"]:
        raise UserError(f"warmup_steps={asked['warmup_steps']}: must be less than steps={asked['steps']}")
    keys = ("steps", "batch_size", "lr", "weight_decay", "warmup_steps", "seed")
    precision = resolve_precision(asked["precision"], asked["accelerator"])
    return SegmentationRecipe(
        **{key: asked[key] for key in keys}, scale=tuple(asked["scale"]), size=size, stride=stride, precision=precision
    )


def _check(network: Network, asked: dict[str, Any], size: int) -> None:
    """Raises UserError for what would fail only after a training."""
    if network.backbone.channels != 3:
        raise UserError(
            f"{network.name}: takes images of {network.backbone.channels} channels; those of segment have 3"
        )
    network.backbone.check_size(size)
    network.backbone.check_kinds(["map"])
    if asked["dilate"]:
        dilated(network.backbone, "dilate=true")
    if asked["finetune"]:
        _settings(asked, published_settings(network.backbone, size))


@dataclass
class _Work:
    """What all networks share."""

    found: Segmentation
    train: LabelledImages
    test: LabelledImages
    recipe: SegmentationRecipe
    asked: dict[str, Any]
    device: torch.device
    log: Callable[[str], None]
    tuned: dict[str, Any] | None = None  # settings of the fine-tuning

    def judge(self, network: Network) -> None:
        """Adds the rows and the pictures of one network."""
        network.backbone.to(self.device)
        normalise, classes = normaliser(network.views), len(self.found.classes)
        for protocol, logits in self.protocols(network, normalise, classes):
            measured, predictions = measure(
                logits, self.test, normalise, classes, self.recipe, self.device, self.asked["shown"]
            )
            self.found.found[network.name, protocol] = measured
            self.found.pictures[f"{protocol.split()[0].strip(',')}, {network.name}"] = [
                _small(coloured(each)) for each in predictions
            ]
            self.log(f"{network.name}, {protocol}: mIoU {measured.mean_iou:.2f} %")

    def protocols(self, network: Network, normalise: Normalise, classes: int) -> Iterator[tuple[str, Logits]]:
        """Yields the names of the protocols with trained networks, one after the other."""
        recipe = self.recipe
        backbone = dilated(network.backbone, "dilate=true") if self.asked["dilate"] else network.backbone
        torch.manual_seed(self.asked["seed"])
        head = LinearSegmenter(backbone, map_width(backbone, recipe.size), classes).to(self.device)
        optimizer = head.optimizer(recipe.lr, recipe.weight_decay)
        self.learn(f"{network.name}, linear", Learner(head, optimizer, recipe.rate, recipe.steps), normalise)
        yield "linear", head
        options = (self.asked["k"], self.asked["bank"], self.asked["seed"], self.device)
        near = neighbours_of(_map_of(backbone), self.train, normalise, recipe.size, classes, *options)
        yield f"k-NN {self.asked['k']} of patches", near
        if self.asked["finetune"]:
            yield self.fine_tune(network, normalise, classes)

    def fine_tune(self, network: Network, normalise: Normalise, classes: int) -> tuple[str, Logits]:
        """Trains a copy of the network with a head."""
        torch.manual_seed(self.asked["seed"])
        model = TunedSegmenter(network.backbone, classes, self.recipe.size).to(self.device)
        settings = _settings(self.asked, model.settings)
        self.tuned = vars(settings)
        learner = Learner(model, model.optimizer(settings), settings.rate, settings.steps)
        self.learn(f"{network.name}, {settings.name}", learner, normalise)
        return settings.name, model

    def learn(self, title: str, learner: Learner, normalise: Normalise) -> None:
        """Trains, and logs the loss ten times."""

        def told(step: int, loss: Tensor) -> None:
            if step % max(1, learner.steps // 10) == 0:
                self.log(f"{title}, step {step:,} of {learner.steps:,}: loss {float(loss):.3f}")

        train_segmenter(learner, self.train, normalise, self.recipe, self.device, told)


def _settings(asked: dict[str, Any], published: FineTuning) -> FineTuning:
    """Returns the published settings with those that are given in their places."""
    changed = {key: asked[f"finetune_{key}"] for key in ("steps", "lr", "warmup_steps")}
    settings = replace(published, **{key: value for key, value in changed.items() if value is not None})
    if settings.warmup_steps >= settings.steps:
        raise UserError(
            f"finetune_warmup_steps={settings.warmup_steps}: must be less than finetune_steps={settings.steps}"
        )
    return settings


def normaliser(views: Views) -> Normalise:
    """Returns the function from uint8 [3, h, w] to float, normalised as the network was trained."""
    mean, std = (
        torch.tensor(list(values))[:, None, None] for values in (views.mean or [0.0] * 3, views.std or [1.0] * 3)
    )

    def normalise(image: Tensor) -> Tensor:
        return (image.float() / 255 - mean) / std

    return normalise


def _map_of(backbone: Backbone) -> Logits:
    backbone.eval()

    @torch.no_grad()
    def map_of(images: Tensor) -> Tensor:
        return backbone.features(images, ["map"])["map"].float()

    return map_of


def _draw_truth(found: Segmentation, test: LabelledImages, count: int) -> None:
    pairs = [test.pair(row) for row in range(min(count, len(test)))]
    found.pictures["image"] = [_small(image.float() / 255) for image, _ in pairs]
    found.pictures["labels"] = [_small(coloured(labels)) for _, labels in pairs]


def _small(picture: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(picture[None], (SHOWN_SIDE, SHOWN_SIDE), mode="nearest")[0]

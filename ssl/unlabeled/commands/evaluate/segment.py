"""Semantic segmentation by frozen dense features: ``unlabeled segment run=outputs/NAME data=FOLDER``."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.transfer import Network, build_networks
from unlabeled.commands.evaluate.transfer import name_of
from unlabeled.core.environment import git_state, machine, versions
from unlabeled.core.writing import kept_anyway
from unlabeled.downstream.segmentation.crops import shorter_side
from unlabeled.downstream.segmentation.label_maps import LabelledImages, count_classes, read_splits
from unlabeled.downstream.segmentation.linear_segmenter import LinearSegmenter, map_width
from unlabeled.downstream.segmentation.patches import PatchNeighbours, patch_labels
from unlabeled.downstream.segmentation.segment_report import Segmentation, coloured, write_segmentation
from unlabeled.downstream.segmentation.training import (
    Normalise,
    SegmentationRecipe,
    measure,
    predict,
    train_segmenter,
)
from unlabeled.errors import UserError
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.views.pipeline import Views
from unlabeled.weights import folder_of
from unlabeled.weights.starting.named import read_named

Logits = Callable[[Tensor], Tensor]
SHOWN_SIDE = 128  # pixels of a drawn image


def segment(
    config: DictConfig, resolved: dict[str, Any], log: Callable[[str], None] = print, command: str | None = None
) -> Segmentation:
    """Trains and measures a linear head, measures neighbours of patches, and writes the page.

    Args:
        config: as composed from ``conf/segment.yaml``.
        resolved: the same as plain values.
        log: takes lines.
        command: for the page; None: what was typed.

    Raises:
        UserError: a mistake, a network without dense features, or images without label maps.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    train, test, names = read_splits(
        Path(resolved["folder"]).expanduser(), resolved["ignore"], resolved["zero_is_no_class"]
    )
    classes = max(count_classes(train), count_classes(test))
    if names and len(names) < classes:
        raise UserError(
            f"data={resolved['folder']}: classes.txt names {len(names)} classes, and the label maps have numbers up to"
            f" {classes - 1}: name {classes}, one a line, or remove the file; pixels of"
            f" ignore={resolved['ignore']} have no class"
        )
    classes = max(classes, len(names))
    checkpoint = read_named(resolved["run"], resolved["checkpoint"], resolved["weights"])
    networks = build_networks(config, checkpoint, name_of(resolved), resolved["random"])
    recipe = _recipe(resolved, networks[0].views.size)
    device = torch.device("cuda" if resolved["accelerator"] != "cpu" and torch.cuda.is_available() else "cpu")
    found = Segmentation([*names, *(str(each) for each in range(len(names), classes))], {}, {})
    _draw_truth(found, test, resolved["shown"])
    for network in networks:
        _judge(found, network, train, test, recipe, resolved, device, log)
    facts = {
        "command": command or typed_command(),
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "checkpoint": checkpoint_provenance(checkpoint),
        "images": {"train": len(train), "test": len(test)},
        "settings": vars(recipe) | {key: resolved[key] for key in ("folder", "ignore", "k", "bank")},
        "machine": machine(),
        "git": git_state(),
        "versions": versions(),
    }
    folder = Path(resolved["out"] or folder_of(checkpoint.path) / "segment").expanduser()
    found.page = kept_anyway(folder, lambda place: write_segmentation(place, found, facts))
    log(f"\n{found.headline}\nthe page is {found.page}")
    return found


def _recipe(asked: dict[str, Any], trained: int) -> SegmentationRecipe:
    size = asked["size"] or trained
    stride = asked["stride"] or max(1, 2 * size // 3)
    if asked["warmup_steps"] >= asked["steps"]:
        raise UserError(f"warmup_steps={asked['warmup_steps']}: must be less than steps={asked['steps']}")
    keys = ("steps", "batch_size", "lr", "weight_decay", "warmup_steps", "seed")
    return SegmentationRecipe(
        **{key: asked[key] for key in keys}, scale=tuple(asked["scale"]), size=size, stride=stride
    )


def _judge(
    found: Segmentation,
    network: Network,
    train: LabelledImages,
    test: LabelledImages,
    recipe: SegmentationRecipe,
    asked: dict[str, Any],
    device: torch.device,
    log: Callable[[str], None],
) -> None:
    """Adds the rows and the pictures of one network."""
    network.backbone.check_size(recipe.size)
    backbone, normalise, classes = network.backbone.to(device), normaliser(network.views), len(found.classes)
    torch.manual_seed(asked["seed"])
    head = LinearSegmenter(backbone, map_width(backbone, recipe.size), classes).to(device)

    def told(step: int, loss: Tensor) -> None:
        if step % max(1, recipe.steps // 10) == 0:
            log(f"{network.name}, linear, step {step:,} of {recipe.steps:,}: loss {float(loss):.3f}")

    train_segmenter(head, train, normalise, recipe, device, told)
    near = _neighbours(network, train, recipe, asked, classes, device)
    for protocol, logits in (("linear", head), (f"k-NN {asked['k']} of patches", near)):
        measured = measure(logits, test, normalise, classes, recipe, device)
        found.found[network.name, protocol] = measured
        log(f"{network.name}, {protocol}: mIoU {measured.mean_iou:.2f} %")
        _draw(found, f"{protocol.split()[0]}, {network.name}", logits, test, normalise, recipe, asked["shown"], device)


def normaliser(views: Views) -> Normalise:
    """Returns the function from uint8 [3, h, w] to float, normalised as the network was trained."""
    mean, std = (
        torch.tensor(list(values))[:, None, None] for values in (views.mean or [0.0] * 3, views.std or [1.0] * 3)
    )

    def normalise(image: Tensor) -> Tensor:
        return (image.float() / 255 - mean) / std

    return normalise


def _neighbours(
    network: Network,
    train: LabelledImages,
    recipe: SegmentationRecipe,
    asked: dict[str, Any],
    classes: int,
    device: torch.device,
) -> Logits:
    """Returns log scores of images [1, 3, size, size] by a bank of patches of the training images' centre crops."""
    normalise, banks, labels = normaliser(network.views), [], []
    for row in range(len(train)):
        image, truth = train.pair(row)
        image = shorter_side(normalise(image), recipe.size)
        top, left = ((side - recipe.size) // 2 for side in image.shape[1:])
        crop = image[:, top : top + recipe.size, left : left + recipe.size]
        truth = torch.nn.functional.interpolate(truth[None, None].float(), image.shape[1:], mode="nearest")[0, 0].long()
        dense = _map(network, crop[None].to(device))[0].cpu()
        banks.append(dense.flatten(1).T)
        truth = truth[top : top + recipe.size, left : left + recipe.size]
        labels.append(patch_labels(truth, dense.shape[1], dense.shape[2], classes))
    bank, known = torch.cat(banks), torch.cat(labels)
    drawn = torch.randperm(len(bank), generator=torch.Generator().manual_seed(asked["seed"]))[: asked["bank"]]
    search = PatchNeighbours(bank[drawn].to(device), known[drawn].to(device), asked["k"])

    def logits(images: Tensor) -> Tensor:
        scores = torch.stack([search(each) for each in _map(network, images)])
        return torch.nn.functional.interpolate(scores.clamp(min=1e-6).log(), images.shape[2:], mode="bilinear")

    return logits


@torch.no_grad()
def _map(network: Network, images: Tensor) -> Tensor:
    return network.backbone.eval().features(images, ["map"])["map"].float()


def _draw_truth(found: Segmentation, test: LabelledImages, count: int) -> None:
    pairs = [test.pair(row) for row in range(min(count, len(test)))]
    found.pictures["image"] = [_small(image.float() / 255) for image, _ in pairs]
    found.pictures["labels"] = [_small(coloured(labels)) for _, labels in pairs]


def _draw(
    found: Segmentation,
    title: str,
    logits: Logits,
    test: LabelledImages,
    normalise: Normalise,
    recipe: SegmentationRecipe,
    count: int,
    device: torch.device,
) -> None:
    pictures = []
    for row in range(min(count, len(test))):
        image = normalise(test.image(row)).to(device)
        size = (len(found.classes), recipe.size, recipe.stride)
        pictures.append(_small(coloured(predict(logits, image, *size, *image.shape[1:]).cpu())))
    found.pictures[title] = pictures


def _small(picture: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(picture[None], (SHOWN_SIDE, SHOWN_SIDE), mode="nearest")[0]

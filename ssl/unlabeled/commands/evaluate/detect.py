"""Detection and instance segmentation from pretrained weights: ``unlabeled detect run=outputs/NAME data=FOLDER``."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.detection import build_detector, build_recipe, neck_of, read_images, train_detector
from unlabeled.commands.build.trainer import resolve_precision
from unlabeled.commands.build.transfer import RANDOM, Network
from unlabeled.commands.evaluate.judged import folder_of_page, page_of_all_tasks
from unlabeled.commands.evaluate.transfer import networks_of
from unlabeled.core.environment import git_state, machine, versions
from unlabeled.core.writing import kept_anyway
from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.annotated.masks import require_pycocotools
from unlabeled.downstream.detection.average_precision import AveragePrecision, Detections, Kind, average_precision
from unlabeled.downstream.detection.detect_report import KINDS, Detection, Judged, note_lines, write_detection
from unlabeled.downstream.detection.drawing import drawn_detections, drawn_truth
from unlabeled.downstream.detection.recipe import DetectionRecipe
from unlabeled.downstream.detection.training import detect_all
from unlabeled.downstream.detection.voc_precision import voc_average_precision
from unlabeled.errors import UserError
from unlabeled.evaluation.provenance import checkpoint_provenance

Log = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """What is the same for every detector of a comparison."""

    recipe: DetectionRecipe
    train: DetectionImages
    val: DetectionImages
    masks: bool
    asked: dict[str, Any]  # the keys of the command
    log: Log

    @property
    def used(self) -> DetectionImages:
        """Returns the images to train on."""
        return self.train if self.recipe.empty else self.train.with_objects()

    @property
    def setting(self) -> list[str]:
        """Returns short facts of all detectors."""
        steps = f"{self.recipe.steps:,} steps of {self.recipe.batch_size} images"
        images = f"{len(self.used):,} images to train on, {len(self.val):,} to judge by"
        return [str(self.asked["folder"]), f"{len(self.train.classes):,} classes", images, steps]

    @property
    def shown(self) -> range:
        """Returns the rows of validation images that are drawn."""
        return range(min(self.asked["shown"], len(self.val)))


def detect(
    config: DictConfig,
    resolved: dict[str, Any],
    log: Log = print,
    command: str | None = None,
    loaded: Network | None = None,
) -> Detection:
    """Trains a detector from each of the weights, measures them, and writes the page.

    The same command goes on where it was stopped: with the state of a detector that is in training, and with the next.

    Args:
        config: as composed from ``conf/detect.yaml``.
        resolved: the same as plain values.
        log: takes lines.
        command: for the page; None: what was typed.
        loaded: a network that is given from Python, which is refused: a training could not go on from it.

    Raises:
        UserError: a mistake, a network that no detector can be made of, or images whose description is wrong.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    if loaded is not None:
        raise UserError(f"{loaded.name}: a detector needs a run, a file of weights or a name such as timm:NAME")
    require_pycocotools()
    work = _work(config, resolved, log)
    networks, checkpoints = networks_of(config, resolved)
    out = folder_of_page(resolved["out"], checkpoints[0], "detect")
    notes = {"train": work.train.notes, "val": work.val.notes}
    unlearned = sorted(work.val.found_classes - work.used.found_classes)
    found = Detection(work.train.classes, {}, work.setting, notes=notes, unlearned=unlearned)
    for line in note_lines(found):
        log(line)
    found.pictures["objects"] = [drawn_truth(work.val, row) for row in work.shown]
    hashes = iter([each.sha256 for each in checkpoints])
    for place, network in enumerate(networks):
        start = "random" if network.name == RANDOM else next(hashes)
        folder = out / "detectors" / f"{place}_{re.sub(r'[^A-Za-z0-9]+', '_', network.name)}"
        _judge(found, work, network, start, folder)
    facts = {
        "command": command or typed_command(),
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "checkpoints": [checkpoint_provenance(each) for each in checkpoints],
        "images": {"train": len(work.used), "val": len(work.val)},
        "descriptions": {"train_sha256": work.train.sha256, "val_sha256": work.val.sha256},
        "settings": resolved,
        "machine": machine(),
        "git": git_state(),
        "versions": versions(),
    }
    found.page = kept_anyway(out, lambda place: write_detection(place, found, facts))
    log(f"\n{found.headline}\nthe page is {found.page}")
    page_of_all_tasks(found.page, "detect", log)
    return found


def _work(config: DictConfig, asked: dict[str, Any], log: Log) -> Work:
    recipe = build_recipe(config)
    train, val = read_images(asked["folder"])
    masks = train.has_masks and val.has_masks if recipe.masks is None else recipe.masks
    for images in (train, val):
        if masks and not images.has_masks:
            raise UserError(
                f"detection.masks=true: {images.origin} has objects without a mask; give detection.masks=false, or a "
                "segmentation for each annotation"
            )
    return Work(recipe, train, val, masks, asked, log)


def _judge(found: Detection, work: Work, network: Network, start: str, folder: Path) -> None:
    """Trains and measures one detector, and adds its numbers and pictures."""
    recipe, asked = work.recipe, work.asked
    neck = neck_of(network.backbone, recipe)
    work.log(f"{network.name}: {neck}, {len(work.used):,} images, {recipe.steps:,} steps of {recipe.batch_size}")
    made = build_detector(network, recipe, len(work.train.classes), work.masks, asked["seed"])
    facts: dict[str, Any] = {"weights": start, "backbone": type(network.backbone).__name__, "data": work.train.sha256}
    facts |= {"masks": work.masks, **{key: asked[key] for key in ("detection", "precision", "seed")}}
    training = train_detector(made, network, recipe, work.used, work.masks, asked, folder, facts, work.log)
    answers = _answers(made, work)
    kinds: list[Kind] = ["bbox", "segm"] if work.masks else ["bbox"]
    precision: dict[str, AveragePrecision] = {kind: average_precision(work.val, answers, kind) for kind in kinds}
    if work.val.voc07:
        precision["voc07"] = voc_average_precision(work.val, answers)
    found.found[network.name] = Judged(precision, training.losses)
    found.pictures[network.name] = [drawn_detections(work.val, row, answers[row]) for row in work.shown]
    for kind, each in precision.items():
        work.log(f"{network.name}, {KINDS[kind]}: AP {each.ap:.2f} %, AP50 {each.ap50:.2f} %, AP75 {each.ap75:.2f} %")


def _answers(made: nn.Module, work: Work) -> list[Detections]:
    gpu = work.asked["accelerator"] != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    precision = resolve_precision(work.asked["precision"], work.asked["accelerator"])

    def told(done: int) -> None:
        if done % 500 == 0:
            work.log(f"{done:,} of {len(work.val):,} validation images")

    return detect_all(made.to(device), work.val, device, precision, told)

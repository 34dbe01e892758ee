"""Active learning on a labelled set: ``unlabeled active run=outputs/NAME strategy=entropy``."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.labelling import build_classifier, build_labelled_set
from unlabeled.core.environment import machine
from unlabeled.core.writing import kept_anyway
from unlabeled.data.source import common_folder
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import Evaluation
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.provenance import provenance
from unlabeled.evaluation.reporting.details.image_cache import ReportImageCache
from unlabeled.evaluation.reporting.report_sections import evaluation_images
from unlabeled.evaluation.selection.active_report import write_active
from unlabeled.evaluation.selection.active_result import Active
from unlabeled.evaluation.selection.course import Course, Schedule, run_course
from unlabeled.evaluation.selection.strategies import RANDOM
from unlabeled.weights import Checkpoint, checkpoint_path, folder_of, read_checkpoint


def active(
    config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print, command: str | None = None
) -> Active:
    """Runs every strategy and random with every seed, and writes the page.

    Args:
        config: as composed from ``conf/active.yaml``.
        resolved: the same as plain values.
        log: takes lines.
        command: for the page; None: what was typed.

    Raises:
        UserError: a mistake, or fewer labelled training images than are asked for.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    path = checkpoint_path(resolved["run"], resolved["checkpoint"])
    checkpoint = read_checkpoint(path)
    evaluation = build_labelled_set(config, checkpoint)
    schedule = Schedule(resolved["start"], resolved["step"], resolved["rounds"])
    pool, test, classes = _features(evaluation, resolved, schedule)
    given = resolved["strategy"]
    strategies = [RANDOM, *([given] if isinstance(given, str) else given)]
    classifier = build_classifier(config)
    courses: list[Course] = []
    for seed in range(resolved["seed"], resolved["seed"] + resolved["seeds"]):
        for strategy in strategies:
            courses.append(run_course(strategy, pool, test, len(classes), classifier, schedule, seed))
            log(f"{strategy}, seed {seed}: {courses[-1].top1[-1]:.2f} % with {courses[-1].counts[-1]:,} labels")
    source = evaluation.extractor.data.splits.train
    root = common_folder(source)
    names = [source.name(id).removeprefix(root) for id in pool.ids.tolist()]  # as a labels_file has them
    found = Active(courses, names, classes, folder_of(path) / "active" / "active.html")
    asked = {
        "command": command or typed_command(),
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "machine": machine(),
        "settings": {key: resolved[key] for key in SETTINGS},
    }
    return _written(found, evaluation, checkpoint, pool, resolved["out"], asked, log)


SETTINGS = ("strategy", "start", "step", "rounds", "seeds", "seed", "pool_images", "classifier", "precision")


def _features(
    evaluation: Evaluation, resolved: dict[str, Any], schedule: Schedule
) -> tuple[Features, Features, list[str]]:
    """Returns those of the images to choose among, those of the test images, and the classes."""
    extractor = evaluation.extractor
    split = extractor.data.splits.test
    if split is None or not bool((split.labels >= 0).any()) or not split.classes:
        raise UserError(
            "data.test: there are no labelled test images to measure accuracy on; give data=PATH of a set that has, or"
            " of class folders with data.holdout=0.2"
        )
    labelled = int((extractor.data.splits.train.labels >= 0).sum())
    most = min(labelled, resolved["pool_images"] or labelled)
    if schedule.counts[-1] > most:
        raise UserError(
            f"rounds={schedule.rounds}: {schedule.counts[-1]:,} labels are asked for, start + step · (rounds − 1), and"
            f" there are {most:,} training images with one; give fewer rounds, or a smaller start or step"
        )
    pool, test = (extractor(evaluation.backbone, each) for each in ("train", "test"))
    if most < len(pool.ids):
        drawn = torch.randperm(len(pool.ids), generator=torch.Generator().manual_seed(resolved["seed"]))[:most]
        pool = pool.rows(drawn.sort().values)
    return pool, test, split.classes


def _written(
    found: Active,
    evaluation: Evaluation,
    checkpoint: Checkpoint,
    pool: Features,
    out: str | None,
    asked: dict[str, Any],
    log: Callable[[str], None],
) -> Active:
    splits = evaluation.extractor.data.splits
    shown = evaluation_images(ReportImageCache(splits, {}, None), evaluation.extractor.views)
    facts = asked | provenance(checkpoint, evaluation.extractor)
    folder = found.page.parent if out is None else Path(out).expanduser()
    page = kept_anyway(
        folder,
        lambda place: write_active(
            place, found, facts, lambda rows: shown("train", pool.ids[torch.tensor(rows)].tolist())
        ),
    )
    log(f"\n{found.table}\n\n{found.headline}\nthe page is {page}")
    return Active(found.courses, found.names, found.classes, page)

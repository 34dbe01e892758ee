"""One checkpoint, one report: features, probes and baselines, with everything needed to believe the numbers."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlabeled.data.module import DataModule
from unlabeled.errors import UserError
from unlabeled.evaluation.exhibits import Exhibits, images_of, network_pictures
from unlabeled.evaluation.features import Probe, extract
from unlabeled.evaluation.judge import Row, judge
from unlabeled.evaluation.report import git_state, label_hash, machine, versions, write_report
from unlabeled.evaluation.results_table import table
from unlabeled.objective import Backbone, Objective
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone, load_objective


@dataclass
class Evaluation:
    """How to look at a checkpoint: the parts that ``build`` made for it.

    ``backbone`` and ``random_backbone`` are freshly initialised alike; the weights go into the first.
    """

    backbone: Backbone
    random_backbone: Backbone
    views: Views
    data: DataModule
    probes: Mapping[str, Probe]
    device: torch.device
    precision: str
    batch_size: int
    settings: dict[str, Any]  # of probes and seeds, for the report
    behind_head: Sequence[str] = ()  # names of probes that look at embeddings instead of features
    objective: Objective | None = None  # with the head that makes them, initialised alike; loaded from the checkpoint
    random_objective: Objective | None = None  # the same, left as it is


def evaluate(evaluation: Evaluation, checkpoint: Checkpoint, report_dir: Path, command: str) -> list[Row]:
    """Judge the backbone in ``checkpoint`` and write ``results.json`` and ``report.md`` with pictures.

    Raises:
        UserError: the backbone does not load whole, or there are no labelled test images.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    load_backbone(checkpoint, evaluation.backbone)
    data, plain = evaluation.data, evaluation.views.plain
    if data.splits.test is None:
        raise UserError("data.test: this data set has no test split to evaluate on; set data.test, or data=…")
    train, test = (data.labelled(split, evaluation.batch_size) for split in ("train", "test"))
    rows = judge(
        evaluation.backbone,
        evaluation.random_backbone,
        train,
        test,
        plain,
        evaluation.probes,
        len(data.splits.test.classes),
        evaluation.device,
        evaluation.precision,
        heads=_heads(evaluation, checkpoint),
    )
    report_dir.mkdir(parents=True, exist_ok=True)
    exhibits = _exhibits(evaluation, checkpoint, train, test)
    run_dir = checkpoint.path.parent.parent
    provenance = {
        "command": command,
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "checkpoint": _describe(checkpoint),
        "data": _describe_data(data),
        "settings": evaluation.settings,
        "config": checkpoint.config,
        "git": git_state(),
        "versions": versions(),
        "machine": machine(),
        "training": _read_json(run_dir / "training.json"),
    }
    report = write_report(
        report_dir,
        rows,
        provenance,
        metrics=run_dir / "metrics.jsonl",
        collapsed_at=_read_json(run_dir / "training.json").get("collapsed_at"),
        exhibits=exhibits,
    )
    print(f"\n{table(rows)}\n\nthe whole report is in {report}")
    return rows


def _exhibits(evaluation: Evaluation, checkpoint: Checkpoint, train: Any, test: Any) -> Exhibits:
    splits, views = evaluation.data.splits, evaluation.views
    seen = [
        extract(evaluation.backbone, each, views.plain, evaluation.device, evaluation.precision)
        for each in (train, test)
    ]
    attention, pictures = network_pictures(evaluation.backbone, evaluation.objective, splits, views, seen[1], 0)
    assert splits.test is not None
    return Exhibits(splits.test.classes, seen[0], seen[1], images_of(splits, views), attention, pictures)


def _heads(evaluation: Evaluation, checkpoint: Checkpoint) -> dict[str, dict[str, nn.Module]]:
    """For each probe behind the head: the trained one for pretrained features, a random one for random features."""
    if evaluation.objective is None or evaluation.random_objective is None:
        return {}
    trained, random = load_objective(checkpoint, evaluation.objective).head(), evaluation.random_objective.head()
    assert trained is not None
    assert random is not None
    return {name: {"pretrained": trained, "random init": random} for name in evaluation.behind_head}


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"path": str(checkpoint.path), "sha256": checkpoint.sha256, **checkpoint.progress}


def _describe_data(data: DataModule) -> dict[str, Any]:
    assert data.splits.test is not None
    return {
        "description": data.splits.description,
        "train_labels_sha256": label_hash(data.splits.train.labels),
        "test_labels_sha256": label_hash(data.splits.test.labels),
        "corrupt_images": len(data.corrupt),
        "corrupt_names": data.corrupt[:100],
    }


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content

"""One checkpoint, one report: features, probes and baselines, with everything needed to believe the numbers."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.module import DataModule
from unlabeled.distributed import alone, rank, world_size
from unlabeled.errors import UserError
from unlabeled.evaluation.exhibits import Exhibits, network_pictures
from unlabeled.evaluation.extractor import Extractor
from unlabeled.evaluation.features import Features, ImageProbe, Probe
from unlabeled.evaluation.judge import Row, judge
from unlabeled.evaluation.report import git_state, label_hash, machine, versions, write_report
from unlabeled.evaluation.results_table import table
from unlabeled.evaluation.shown import decoder, images_of
from unlabeled.evaluation.task import tasks
from unlabeled.objective import Backbone, Objective
from unlabeled.weights import Checkpoint, load_backbone, load_objective


@dataclass
class Evaluation:
    """How to look at a checkpoint: the parts that ``build`` made for it.

    ``backbone`` and ``random_backbone`` are freshly initialised alike; the weights go into the first.
    """

    backbone: Backbone
    random_backbone: Backbone | None  # None: the checkpoint is judged alone, without baselines
    extractor: Extractor  # of the data set, on the device
    probes: Mapping[str, Probe | ImageProbe]
    settings: dict[str, Any]  # of probes and seeds, for the report
    config: dict[str, Any]  # resolved, for the report
    behind_head: Sequence[str] = ()  # names of probes that look at embeddings instead of features
    objective: Objective | None = None  # with the head that makes them, initialised alike; loaded from the checkpoint
    random_objective: Objective | None = None  # the same, left as it is
    painter: Objective | None = None  # of the run, initialised alike, where it makes pictures for the report


def evaluate(evaluation: Evaluation, checkpoint: Checkpoint, report_dir: Path, command: str) -> list[Row]:
    """Judge the backbone in ``checkpoint`` and write ``results.json`` and the report.

    With several processes each returns rows, the first one all of them, and that one writes.

    Raises:
        UserError: the backbone does not load whole, or there are no labelled test images.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    load_backbone(checkpoint, evaluation.backbone)
    extractor = evaluation.extractor
    test = extractor.data.splits.test
    if test is None:
        raise UserError("data.test: this data set has no test split to evaluate on; set data.test, or data=…")
    looked: dict[str, tuple[Features, Features]] = {}

    def keep(name: str, train: Features, test: Features) -> None:
        if name == "pretrained":
            looked[name] = _last(train), _last(test)

    rows = judge(
        evaluation.backbone,
        evaluation.random_backbone,
        extractor,
        evaluation.probes,
        len(test.classes),
        extractor.device,
        raw_pixels=evaluation.random_backbone is not None,
        heads=_heads(evaluation, checkpoint),
        task=tasks(extractor.data, extractor.views, len(test.classes), extractor.device, extractor.precision),
        say=print if rank() == 0 else _silent,
        seen=keep,
    )
    if rank():
        return rows
    computer = machine() | {"processes": world_size()}
    with alone():
        begun = command, started, clock
        report = _write(evaluation, rows, looked["pretrained"], checkpoint, report_dir, begun, computer)
    print(f"\n{table(rows)}\n\nthe whole report is in {report}")
    return rows


def _write(
    evaluation: Evaluation,
    rows: list[Row],
    looked: tuple[Features, Features],
    checkpoint: Checkpoint,
    report_dir: Path,
    begun: tuple[str, datetime, float],
    computer: dict[str, Any],
) -> Path:
    report_dir.mkdir(parents=True, exist_ok=True)
    extractor, (command, started, clock) = evaluation.extractor, begun
    run_dir = checkpoint.path.parent.parent
    training = _read_json(run_dir / "training.json")
    provenance = {
        "command": command,
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "checkpoint": _describe(checkpoint),
        "data": _describe_data(extractor.data),
        "views": extractor.views.evaluation(),
        "images_read": extractor.passes,
        "settings": evaluation.settings,
        "git": git_state(),
        "versions": versions(),
        "machine": computer,
        "training": training,
        "config": evaluation.config,
    }
    return write_report(
        report_dir,
        rows,
        provenance,
        metrics=run_dir / "metrics.jsonl",
        collapsed_at=training.get("collapsed_at"),
        exhibits=_exhibits(evaluation, checkpoint, *looked),
    )


def _last(features: Features) -> Features:
    """Without the further kinds, which may be large."""
    return Features(features.x, features.labels, features.ids)


def _silent(line: str) -> None:
    pass


def _exhibits(evaluation: Evaluation, checkpoint: Checkpoint, train: Features, test: Features) -> Exhibits:
    """What is shown of the judged network; its images are decoded once more, about ninety of them, and kept."""
    splits, views = evaluation.extractor.data.splits, evaluation.extractor.views
    decode = decoder(splits, evaluation.extractor.cache)
    painter = None if evaluation.painter is None else load_objective(checkpoint, evaluation.painter)
    attention, pictures = network_pictures(evaluation.backbone, painter, decode, views, test, seed=0)
    assert splits.test is not None
    return Exhibits(splits.test.classes, train, test, images_of(decode, views), attention, pictures)


def _heads(evaluation: Evaluation, checkpoint: Checkpoint) -> dict[str, dict[str, nn.Module]]:
    """For each probe behind the head: the trained one for pretrained features, a random one for random features."""
    if evaluation.objective is None or evaluation.random_objective is None:
        return {}
    trained, random = load_objective(checkpoint, evaluation.objective).head(), evaluation.random_objective.head()
    assert trained is not None
    assert random is not None
    return {name: {"pretrained": trained, "random init": random} for name in evaluation.behind_head}


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "encoder": checkpoint.part,
        "left_out": checkpoint.left_out,
        "notes": checkpoint.notes,
        **checkpoint.progress,
    }


def _describe_data(data: DataModule) -> dict[str, Any]:
    assert data.splits.test is not None
    return {
        "description": data.splits.description,
        "train_labels_sha256": label_hash(data.splits.train.labels),
        "test_labels_sha256": label_hash(data.splits.test.labels),
        "train_fingerprint": fingerprint(data.splits.train, moved=True),
        "test_fingerprint": fingerprint(data.splits.test, moved=True),
        "corrupt_images": len(data.corrupt),
        "corrupt_names": data.corrupt[:100],
    }


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content

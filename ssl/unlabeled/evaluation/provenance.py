"""Collects what a report says of the checkpoint, the data, the run and the machine."""

import os
from pathlib import Path
from typing import Any

from unlabeled.core.environment import git_state, hash_labels, versions
from unlabeled.core.escaping import escaped
from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_bytes
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.lists.left_out import lines
from unlabeled.data.module import DataModule
from unlabeled.evaluation.extractor import Extractor
from unlabeled.weights import Checkpoint, folder_of

PLANNED = ("data", "device", "checks")  # keys of plan.json that a report tells


def provenance(checkpoint: Checkpoint, extractor: Extractor) -> dict[str, Any]:
    """Returns everything but what only the command knows, as nested dicts of plain values."""
    run = folder_of(checkpoint.path)
    return {
        "checkpoint": checkpoint_provenance(checkpoint),
        "data": _of_data(extractor.data),
        "views": extractor.views.evaluation(),
        "images_read": extractor.passes,
        "images_per_second": _speed(extractor),
        "git": git_state(),
        "versions": versions(),
        "training": read_json(run / "training.json"),
        "plan": {key: value for key, value in read_json(run / "plan.json").items() if key in PLANNED},
        "findings": _findings(read_json(run / "health.json")),
        "run_config": checkpoint.config,
    }


def _findings(health: dict[str, Any]) -> list[str] | None:
    """Returns the sentences of the health monitor; None where it did not look."""
    findings = health.get("findings")
    if not isinstance(findings, list):
        return None
    return [str(each["sentence"]) for each in findings if isinstance(each, dict) and "sentence" in each]


def trained_epochs(checkpoint: Checkpoint) -> float | None:
    """Returns for how many epochs the evaluated network was trained; None where the file does not say."""
    steps = checkpoint.progress.get("steps_per_epoch")
    return checkpoint.progress.get("step", 0) / steps if steps else None


def read_json(path: Path) -> dict[str, Any]:
    """Reads an optional file; a damaged one is reported and left out, as no number depends on it."""
    if not os.path.exists(path):
        return {}
    try:
        content = parse_json(read_bytes(path))
    except (OSError, ValueError):
        content = None
    if isinstance(content, dict):
        return content
    print(f"warning: {escaped(path)} is damaged and left out")
    return {}


def _speed(extractor: Extractor) -> float | None:
    """Returns images per second through a network, over all passes; None if all features came from the cache."""
    images, seconds = (sum(each[key] for each in extractor.passes) for key in ("images", "seconds"))
    return round(images / seconds, 1) if seconds else None


def checkpoint_provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the file with its hash and what was loaded from it; call it after loading."""
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "encoder": checkpoint.part,
        **({"uses_labels": True} if checkpoint.uses_labels else {}),
        "left_out": checkpoint.left_out,
        "notes": checkpoint.notes,
        **({"started_from": checkpoint.weights} if checkpoint.weights else {}),
        **({"learned_from": checkpoint.teacher} if checkpoint.teacher else {}),
        **checkpoint.progress,
    }


def _of_data(data: DataModule) -> dict[str, Any]:
    assert data.splits.test is not None
    return {
        "description": data.splits.description,
        "train_labels_sha256": hash_labels(data.splits.train.labels),
        "test_labels_sha256": hash_labels(data.splits.test.labels),
        "train_fingerprint": fingerprint(data.splits.train, moved=True),
        "test_fingerprint": fingerprint(data.splits.test, moved=True),
        "corrupt_images": len(data.corrupt),
        "corrupt_names": data.corrupt[:100],
        "left_out": lines(data.splits.left_out),
        "warnings": list(data.splits.warnings),
    }

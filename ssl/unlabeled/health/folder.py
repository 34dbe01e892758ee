"""Diagnoses a run from its folder: while it trains, when it is finished, or from a copy."""

import os
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_bytes, read_utf8
from unlabeled.errors import UserError
from unlabeled.health.diagnosis import Diagnosis
from unlabeled.health.facts import RunFacts, facts_from_dict

FILE = "health.json"
METRICS = "metrics.jsonl"


def diagnose_run(run_dir: Path) -> Diagnosis:
    """Returns the diagnosis of ``run_dir``; without a health monitor in the run, it uses the loss alone.

    Raises:
        UserError: the folder holds no metrics, or a file cannot be read.
    """
    if not os.path.isfile(run_dir / METRICS):
        raise UserError(f"run={run_dir}: there is no {METRICS} in it; give the folder of a run")
    diagnosis = Diagnosis(_facts(run_dir))
    add_metrics(run_dir, diagnosis)
    return diagnosis


def add_metrics(run_dir: Path, diagnosis: Diagnosis, until: int | None = None) -> None:
    """Adds the metrics of a run up to a step, without a line that is incomplete."""
    for step, metrics in _records(run_dir):
        if until is None or step <= until:
            diagnosis.add(step, metrics)


def losses_of(run_dir: Path) -> list[float]:
    """Returns the finite losses that a run has written, in order. Raises UserError if they cannot be read."""
    losses = [metrics.get("train/loss") for _, metrics in _records(run_dir)]
    return [float(loss) for loss in losses if isinstance(loss, int | float) and isfinite(loss)]


def _records(run_dir: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    path = run_dir / METRICS
    if not os.path.exists(path):
        return
    try:
        lines = read_utf8(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    for line in lines:
        step, metrics = _parsed(line)
        if step is not None:
            yield step, metrics


def _parsed(line: str) -> tuple[int | None, dict[str, Any]]:
    try:
        metrics = parse_json(line)
    except ValueError:
        return None, {}
    if not isinstance(metrics, dict) or not isinstance(metrics.get("step"), int):
        return None, {}
    return metrics.pop("step"), metrics


def _facts(run_dir: Path) -> RunFacts:
    """Reads ``health.json``, else the loss at collapse from the ``training.json`` of a finished run."""
    path = run_dir / FILE
    if os.path.exists(path):
        try:
            return facts_from_dict(_read(path)["facts"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path}: is of another version or damaged ({error}); remove it to diagnose the run by its loss alone"
            ) from error
    training = _read(run_dir / "training.json") if os.path.exists(run_dir / "training.json") else {}
    if not isinstance(training, dict):
        raise UserError(f"{run_dir / 'training.json'}: is damaged, it holds no keys; remove it")
    collapsed_at = training.get("collapsed_at")
    known = collapsed_at if type(collapsed_at) is float else None
    return RunFacts("no health.json: the loss alone", known, 0, 0)


def _read(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error

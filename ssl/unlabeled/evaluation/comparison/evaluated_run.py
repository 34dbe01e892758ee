"""Reads the results of past evaluations: rows, provenance, and the configuration of the evaluated run."""

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unlabeled.core.file_config import as_data
from unlabeled.core.parsing import parse_json
from unlabeled.core.places import why_not_evaluated
from unlabeled.core.reading import read_bytes
from unlabeled.core.run_config import FREE_KEYS, NOT_FREE, read_yaml
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import TENSORS, Row

STORED = [each.name for each in fields(Row) if each.name not in TENSORS]
KINDS = {"features": str, "protocol": str, "chosen": dict, "notes": list, "n_train": int, "n_test": int}
KINDS |= {"metrics": dict, "draws": list}
DATA = ("description", "train_labels_sha256", "test_labels_sha256", "train_fingerprint", "test_fingerprint")
# Keys of the transform in a report, and their places in a run's configuration.
TRANSFORM = {"size": "size", "crop": "evaluation_crop", "interpolation": "evaluation_interpolation"}
TRANSFORM |= {"mean": "mean", "std": "std"}


@dataclass
class EvaluatedRun:
    """The contents of a folder of a run or a report; ``problem`` says why there are none."""

    folder: Path  # as it was given
    report: Path  # folder of results.json
    config: dict[str, Any] = field(default_factory=dict)  # resolved configuration of the training run; empty if unknown
    rows: list[Row] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    others: list[Any] = field(default_factory=list)  # earlier evaluations in the same report, as they are stored

    @property
    def name(self) -> str:
        """Returns the name of the run: its folder's."""
        folder = self.folder.resolve()
        return folder.parent.name if folder == self.report.resolve() and folder.name == "report" else folder.name

    @property
    def seed(self) -> int | None:
        """Returns the seed of the training run."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    def data(self) -> dict[str, Any]:
        """Returns the data that were evaluated; numbers on other data are not comparable."""
        known = self.provenance.get("data")
        said = {key: known.get(key) for key in DATA} if isinstance(known, dict) else {}
        return {key: said[key] if isinstance(said.get(key), str) else None for key in DATA}

    def settings(self) -> dict[str, Any]:
        """Returns ``precision`` and ``probe``, the settings of each probe by its name, of the evaluation."""
        said = self.provenance.get("settings")
        said = said if isinstance(said, dict) else {}
        probes = said.get("probe")
        return {"precision": said.get("precision"), "probe": probes if isinstance(probes, dict) else {}}

    def transform(self) -> dict[str, Any]:
        """Returns the image transform: pixels, crop, interpolation, mean and std; from the run if not in the report."""
        said = self.provenance.get("views")
        views = self.config.get("views")
        views = views if isinstance(views, dict) else {}
        return said if isinstance(said, dict) else {key: views.get(name) for key, name in TRANSFORM.items()}


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration that decides a run's numbers but for chance: no seed, no names, no ``FREE_KEYS``.

    Of ``trainer``, which is free, the keys of ``NOT_FREE`` stay by their dotted names where they are not the usual:
    no clipping, and BatchNorm over all processes.
    """
    identity = copy.deepcopy(dict(config))
    for key in ("seed", "name", "run_dir", *FREE_KEYS):
        group, _, name = key.rpartition(".")
        node = config_value(identity, group) if group else identity
        if isinstance(node, dict):
            node.pop(name, None)
    own = {key: config_value(config, key) for key in NOT_FREE}
    return identity | {key: value for key, value in own.items() if value is not None and value is not True}


def config_value(config: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a dotted key; None where there is no such key."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def is_run(folder: Path) -> bool:
    """Checks whether this is the folder of a run or of a report."""
    return any(os.path.exists(folder / name) for name in ("checkpoints", "config.yaml", "report", "results.json"))


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """Reads the folder of a run or of a report. Never raises: ``problem`` names what is missing or damaged."""
    report = folder if os.path.exists(folder / "results.json") else folder / "report"
    beside = folder.resolve().parent if folder.resolve().name == "report" else folder
    found = EvaluatedRun(folder, report, _config(beside / "config.yaml"))
    try:
        results = parse_json(read_bytes(report / "results.json"))
        found.rows = [_row(row) for row in results["rows"]]
        found.provenance = dict(results["provenance"])
        found.others = list(results.get("earlier") or [])
    except FileNotFoundError:
        found.problem = why_not_evaluated(folder)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError, OSError) as error:
        found.rows = []
        found.problem = f"{report / 'results.json'} is damaged ({type(error).__name__}); {_command(folder)}"
    run_config = found.provenance.get("run_config")
    found.config = _plain(run_config, report) if isinstance(run_config, dict) else found.config
    return found


def evaluated_rows(stored: Mapping[str, Any]) -> list[Row] | None:
    """Returns the rows of an evaluation as results.json stores them; None where they are damaged."""
    try:
        return [_row(row) for row in stored["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError):
        return None


def _row(stored: Mapping[str, Any]) -> Row:
    """Makes a Row and ignores unknown keys, which later versions may write. Raises ValueError for other types."""
    wrong = [name for name, kind in KINDS.items() if not isinstance(stored.get(name, kind()), kind)]
    if wrong:
        raise ValueError(f"{wrong[0]} of another type")
    percents = [*stored.get("draws", []), *([] if stored.get("top1") is None else [stored["top1"]])]
    counts = [stored.get(name, 0) for name in ("n_train", "n_test")]
    if not all(map(_is_percent, percents)) or not all(0 <= count < 1 << 50 for count in counts):
        raise ValueError("a number out of range")
    row = Row(**{key: value for key, value in stored.items() if key in STORED})
    row.top1 = math.nan if row.top1 is None else float(row.top1)  # JSON has no NaN: the probe has failed
    row.interval = None if row.interval is None else (float(row.interval[0]), float(row.interval[1]))
    return row


def _is_percent(value: Any) -> bool:
    return type(value) in (int, float) and (0 <= value <= 100 or value != value)


def _command(folder: Path) -> str:
    return f"unlabeled evaluate run={folder} writes its report"


def _config(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except (OSError, ValueError):
        return {}
    return _plain(content, path) if isinstance(content, dict) else {}


def _plain(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the configuration with today's names of its targets; {} if it is no configuration."""
    try:
        found: dict[str, Any] = as_data(config, str(path))
    except UserError:
        return {}
    return found

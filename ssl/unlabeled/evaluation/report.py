"""Writes what was measured: results.json for programs and report.md for people, every number with its protocol."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.evaluation.figures import loss_curve
from unlabeled.evaluation.judge import Row

PACKAGES = ["torch", "torchvision", "pytorch-lightning", "scikit-learn", "Pillow"]
ORDER = ["pretrained", "random init", "raw pixels"]


def write_report(
    folder: Path,
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
    metrics: Path | None = None,
    collapsed_at: float | None = None,
    feature_map: Path | None = None,
) -> Path:
    """Writes results.json, report.md and loss_curve.png into ``folder`` and returns the path of report.md.

    ``provenance``: checkpoint, data, seeds, versions, machine, times; nested dicts of plain values and paths.
    ``metrics``: the run's metrics.jsonl, or None. ``feature_map``: a picture that already lies in ``folder``.
    In results.json numbers are not rounded, and one that is not finite is null.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = _plain({"rows": [row.plain() for row in rows], "provenance": dict(provenance)})
    _write(folder / "results.json", json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    pictures = [("Map of the test features", feature_map)] if feature_map else []
    if metrics is not None and metrics.exists():
        loss_curve(metrics, folder / "loss_curve.png", collapsed_at)
        pictures.insert(0, ("Loss and online k-NN by epoch", folder / "loss_curve.png"))
    _write(folder / "report.md", _markdown(rows, results["provenance"], pictures))
    return folder / "report.md"


def table(rows: Sequence[Row]) -> str:
    """Top-1 in per cent as a markdown table: a line per kind of features, a column per protocol.

    "–" stands where nothing was measured. Chance uses no features, so its numbers stand in every column.
    """
    measured = [row for row in rows if row.features != "chance"]
    protocols = list(dict.fromkeys(row.protocol for row in measured))
    cells = {(row.features, row.protocol): row.top1 for row in measured}
    lines = [["top-1, %", *protocols], ["---"] + ["---:"] * len(protocols)]
    for name in _names(measured):
        lines.append([name] + [_percent(cells.get((name, p))) for p in protocols])
    if {"pretrained", "random init"} <= {row.features for row in measured}:
        gains = [_difference(cells.get(("pretrained", p)), cells.get(("random init", p))) for p in protocols]
        lines.insert(2 + _names(measured).index("random init") + 1, ["pretrained − random init", *gains])
    lines += [[_chance_name(row)] + [_percent(row.top1)] * len(protocols) for row in rows if row.features == "chance"]
    return _aligned(lines)


def versions() -> dict[str, str]:
    """Python and the packages that decide a number; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"torch": str(torch.__version__)}  # with its +cpu or +cu128


def machine() -> dict[str, Any]:
    """Operating system, number and model of CPUs, and the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"system": platform.platform(), "cpus": os.cpu_count(), "cpu": _cpu_model(), "gpus": gpus}


def made_with(provenances: Sequence[Mapping[str, Any]]) -> list[str]:
    """Versions, machines and dates of several reports' ``provenance``, each said once: two lines for below a table."""
    used = {json.dumps(each["versions"]) for each in provenances}
    described = [", ".join(f"{name} {version}" for name, version in json.loads(each).items()) for each in used]
    computers = {f"{each['machine']['cpu']}, {each['machine']['cpus']} cores" for each in provenances}
    dates = sorted(each["date"][:10] for each in provenances)
    return [
        f"Versions: {'; '.join(sorted(described))}.",
        f"Machine: {'; '.join(sorted(computers))}. Dates: {dates[0]} to {dates[-1]}.",
    ]


def label_hash(labels: Tensor) -> str:
    """SHA-256 of a list of labels int64 [N] in its order, as little-endian bytes."""
    return hashlib.sha256(labels.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def _markdown(rows: Sequence[Row], provenance: dict[str, Any], pictures: list[tuple[str, Path]]) -> str:
    parts = ["# Evaluation of frozen features", table(rows), _how_measured(rows)]
    parts += ["## What was chosen", _chosen(rows)]
    parts += [f"## {title}\n\n![{title}]({path.name})" for title, path in pictures]
    parts += ["## Where the numbers come from", _provenance(provenance)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how_measured(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.features != "chance"]
    if not measured:
        return ""
    shares = sorted({row.chosen["holdout"] for row in measured if "holdout" in row.chosen})
    share = " and ".join(f"{100 * share:g} %" for share in shares)
    chosen = f"Hyper-parameters were chosen on {share} of train. " if shares else "No hyper-parameter was chosen. "
    n_test = measured[0].n_test
    error = max(math.sqrt(row.top1 * (100 - row.top1) / n_test) for row in measured)  # binomial
    return (
        f"The last epoch was judged, not the best one. {chosen}The test set was used once, for these numbers. "
        f"{measured[0].n_train:,} labelled train images, {n_test:,} labelled test images; from the number "
        f"of test images alone a score has a standard error of up to {error:.2f} points. "
        "Columns are different protocols: compare within a column."
    )


def _chosen(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row.features != "chance":
            what = ", ".join(f"{key} = {_short(value)}" for key, value in row.chosen.items())
            lines.append(f"- **{row.features}**, {row.protocol}: {what or 'nothing'}")
            lines += [f"  - Note: {note}" for note in row.notes]
    return "\n".join(lines)


def _provenance(values: Mapping[str, Any]) -> str:
    flat = [f"| {_cell(key)} | {_cell(value)} |" for key, value in _flat(values)]
    return "\n".join(["| what | value |", "| --- | --- |", *flat])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, _short(value))]
    return flat


def _names(rows: Sequence[Row]) -> list[str]:
    present = dict.fromkeys(row.features for row in rows)
    return [name for name in ORDER if name in present] + [name for name in present if name not in ORDER]


def _chance_name(row: Row) -> str:
    return {"chance/majority-class": "chance: largest class of test", "chance/uniform": "chance: uniform guess"}.get(
        row.protocol, row.protocol
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _difference(a: float | None, b: float | None) -> str:
    return "–" if a is None or b is None else f"{a - b:+.2f}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    lines[1] = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    first, rest = widths[0], widths[1:]
    rows = [[line[0].ljust(first)] + [c.rjust(w) for c, w in zip(line[1:], rest, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return ", ".join(_short(item) for item in value) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _plain(value: Any) -> Any:
    """Paths → text, numbers that are not finite → None; a report must not be lost to a loss that was NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    """All or nothing: a kill while writing leaves the old file."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

"""One table of many evaluated runs: ``unlabeled table outputs/* [format=latex] [out=FILE]``.

A line is a configuration, its seeds together; a column is a protocol on some data under some transform, never two.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile
from math import isfinite
from pathlib import Path
from typing import Any

from unlabeled.commands.config import run_module
from unlabeled.commands.entry_points.console import quoted
from unlabeled.core.run_config import differences
from unlabeled.core.writing import write_atomic
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.evaluated_run import (
    EvaluatedRun,
    config_value,
    is_run,
    read_evaluated_run,
    run_identity,
)
from unlabeled.evaluation.comparison.table_text import FORMATS, ComparisonTable, TableCell, TableColumn, TableLine
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import count_interval
from unlabeled.evaluation.statistics import mean_over_seeds

PRETRAINED = "pretrained"
CHANCE = {"chance/majority-class": "chance: largest class of test", "chance/uniform": "chance: uniform guess"}
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}


def table_command(config: Any, resolved: dict[str, Any]) -> None:
    """Read, arrange, write.

    Args:
        config: as composed from ``conf/table.yaml``.
        resolved: the same as plain values.
    """
    given, out = resolved["runs"], resolved["out"]
    runs = [Path(str(run)).expanduser() for run in (given if isinstance(given, list) else [given])]
    path = Path(out).expanduser()
    kind = resolved["format"] or ENDINGS.get(Path(out).suffix, "markdown")
    text = FORMATS[kind](make_table(runs, resolved["baselines"]))
    if out == "-":
        print(text, end="")
        return
    write_atomic(path, text)
    print(f"{kind} of {len(runs)} folders is in {path}")


def make_table(folders: Sequence[Path], baselines: bool = False) -> ComparisonTable:
    """Of the runs in ``folders``; those that are no runs, not evaluated or damaged are in its notes.

    ``baselines``: further lines for random networks, raw pixels and chance.

    Raises:
        UserError: not one of them is a run.
    """
    given = list({folder.resolve(): folder for folder in folders}.values())
    others = [folder for folder in given if os.path.exists(folder) and not is_run(folder)]
    found = [read_evaluated_run(folder) for folder in given if folder not in others]
    if not found:
        raise UserError(f"runs: no run among {', '.join(map(str, given[:5]))}{' …' if len(given) > 5 else ''}")
    groups = group_by_config(found)
    lines = [_line(runs) for runs in groups]
    _tell_apart(lines, groups)
    notes = [f"{run.folder}: ✗, {run.problem}" for run in found if run.problem]
    notes += [f"{run.folder}: ✗, {row.protocol} gave no number" for run in found for row in _failed(run)]
    notes += [f"{path}: left out, a run of its configuration and seed is in the table" for path in _twice(groups)]
    notes += [f"left out, no runs: {', '.join(map(str, others))}"] if others else []
    lines += _baselines([run for run in found if not run.problem]) if baselines else []
    return ComparisonTable(lines, list(dict.fromkeys(column for line in lines for column in line.cells)), notes)


def group_by_config(found: Iterable[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    """By all that decides a run's numbers but the seed: its configuration and the step that was evaluated.

    A run that cannot be read stands with those of its configuration; one of an unknown configuration stands alone.
    """
    groups: dict[tuple[str, str], list[EvaluatedRun]] = {}
    for run in sorted(found, key=lambda run: run.problem is not None):
        key = _as_json(run_identity(run.config)) if run.config else str(run.folder)
        step = _as_json(config_value(run.provenance, "checkpoint.step"))
        same = [other for other in groups if other[0] == key and run.problem]
        groups.setdefault(same[0] if same else (key, step), []).append(run)
    order = list(found)
    return sorted(groups.values(), key=lambda runs: min(order.index(run) for run in runs))


def _kept(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Those that can be read, the first of each seed: a second one of a seed is no other draw."""
    kept: dict[Any, EvaluatedRun] = {}
    for run in runs:
        if not run.problem:
            kept.setdefault(str(run.folder) if run.seed is None else run.seed, run)
    return list(kept.values())


def _twice(groups: Iterable[Sequence[EvaluatedRun]]) -> list[Path]:
    return [run.folder for runs in groups for run in runs if not run.problem and run not in _kept(runs)]


def _line(runs: Sequence[EvaluatedRun]) -> TableLine:
    kept = _kept(runs)
    broken = sum(run.problem is not None for run in runs)
    return TableLine(_common_name(kept or runs), len(kept), _cells(kept, PRETRAINED), broken)


def _common_name(runs: Sequence[EvaluatedRun]) -> str:
    """A single run's own; of several, what their names begin with, without the seed."""
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    without = [re.sub(r"[-_]?seed[-_=]?\d+", "", name) for name in names]
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*without, strict=False))
    return "".join(letters[0] for letters in shared).rstrip("-_") or names[0]


def _tell_apart(lines: Sequence[TableLine], groups: Sequence[Sequence[EvaluatedRun]]) -> None:
    """Where lines have the same name, add in what their configurations differ, and else the folder."""
    for name in {line.name for line in lines}:
        same = [(line, runs[0]) for line, runs in zip(lines, groups, strict=True) if line.name == name]
        recipes = [run_identity(run.config) for _, run in same]
        keys = list(dict.fromkeys(key for other in recipes[1:] for key in differences(recipes[0], other)))
        told = [", ".join(f"{key}={config_value(run.config, key)}" for key in keys[:3]) for _, run in same]
        for (line, run), words in zip(same, told, strict=True) if len(same) > 1 else []:
            folder = "" if words and told.count(words) == 1 else str(run.folder)
            line.name += f" ({', '.join(filter(None, (words, folder)))})"


def _failed(run: EvaluatedRun) -> list[Row]:
    return [row for row in run.rows if row.features == PRETRAINED and not isfinite(row.top1)]


def _cells(runs: Sequence[EvaluatedRun], features: str) -> dict[TableColumn, TableCell]:
    """The first number of each seed in each column."""
    rows: dict[TableColumn, dict[Any, Row]] = {}
    for run in runs:
        seed = str(run.folder) if run.seed is None else run.seed
        for row in run.rows:
            if row.features == features:
                rows.setdefault(_column(run, row.protocol), {}).setdefault(seed, row)
    return {column: _cell([*each.values()]) for column, each in rows.items()}


def _column(run: EvaluatedRun, protocol: str) -> TableColumn:
    data = run.data()
    prints = [data["train_fingerprint"], data["test_fingerprint"]]  # of the images; a description may name a folder
    known = data if None in prints else prints
    return TableColumn(protocol, _as_json(known), _as_json(run.transform()), _as_json(data))


def _cell(rows: Sequence[Row]) -> TableCell:
    measured = [row for row in rows if isfinite(row.top1)]
    if not measured:
        return TableCell(None)
    if len(measured) > 1:
        seeds = mean_over_seeds([row.top1 for row in measured])
        return TableCell(seeds.mean, seeds.deviation, seeds.n, seeds.interval)
    row = measured[0]
    return TableCell(row.top1, interval=row.interval or (count_interval(row, row.n_test) if row.n_test else None))


def _baselines(runs: Sequence[EvaluatedRun]) -> list[TableLine]:
    """Lines for each kind of random network, raw pixels, and both kinds of chance, which stand in any column."""
    networks: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        networks.setdefault(_as_json(run.config.get("backbone")), []).append(run)
    lines = []
    for number, (_, each) in enumerate(networks.items(), 1):
        name = "random init" if len(networks) == 1 else f"random init {number}, as {_common_name(each)}"
        readable = [run for run in each if not run.problem]
        lines.append(TableLine(name, len(_kept(each)), _cells(readable, "random init"), baseline=True))
    measured = [(run, row) for run in reversed(runs) for row in run.rows if row.features == PRETRAINED]
    first = {_column(run, row.protocol): run for run, row in measured}
    pixels = {column: cell for run in reversed(runs) for column, cell in _cells([run], "raw pixels").items()}
    lines.append(TableLine("raw pixels", 1, pixels, baseline=True))
    for protocol, name in CHANCE.items():
        cells = {column: cell for column, run in first.items() if (cell := _chance(run, protocol))}
        lines.append(TableLine(name, 1, cells, baseline=True))
    return [line for line in lines if line.cells]


def _chance(run: EvaluatedRun, protocol: str) -> TableCell | None:
    return next((TableCell(row.top1) for row in run.rows if row.protocol == protocol), None)


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def folders_as_override(arguments: Sequence[str]) -> list[str]:
    """The command line for Hydra, which has no positional arguments: ``A B key=value`` as ``key=value runs=["A","B"]``.

    What exists is a folder, whatever is in its name; so is what is neither ``key=value`` nor belongs to an option.
    """
    folders: list[str] = []
    others: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        is_option = argument.startswith("-") or before.startswith("-") or "=" in argument
        (others if is_option and not os.path.exists(argument) else folders).append(argument)
    if folders and any(other.startswith("runs=") for other in others):
        print("error: runs=[…] and folders without a key: give one of the two", file=sys.stderr)
        raise SystemExit(2)
    return [*others, f"runs=[{','.join(map(quoted, folders))}]"] if folders else others


if __name__ == "__main__":
    sys.argv[1:] = folders_as_override(sys.argv[1:])
    run_module("table", table_command)

"""Numbers of earlier evaluations: a report is a set of rows, and a smaller evaluation takes none of them away.

A row is known by its features and protocol, and by what was evaluated: checkpoint, images, transform, precision and
seed. Rows of the same evaluation stand in the table with the day of their measurement; rows of another checkpoint or of
other images stand in a list of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.core.environment import plain_values
from unlabeled.core.escaping import in_table
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.evaluated_run import EvaluatedRun, evaluated_rows, read_evaluated_run
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import read_predictions
from unlabeled.pages.parts import text_table
from unlabeled.pages.section import Section
from unlabeled.pages.template import breakable

TITLE = "Earlier evaluations"
WORDS = "Of another checkpoint, of other images, or with other settings: not to be compared with the table above."
HEAD = ["date", "checkpoint's step", "images", "features", "protocol", "top-1, %"]


@dataclass
class Earlier:
    """What a folder's report held before it is written again."""

    rows: list[Row] = field(default_factory=list)  # of the same evaluation, which was not made again
    others: list[dict[str, Any]] = field(default_factory=list)  # plain values: provenance in brief, and rows
    moved: bool = False  # whether the report's own rows are the last of the others now

    def section(self) -> Section | None:
        """Returns the list of the others; None where there are none."""
        lines = [_cells(other, row) for other in self.others for row in other["rows"]]
        if not lines:
            return None
        rows = [HEAD, ["---"] * len(HEAD), *([in_table(cell) for cell in line] for line in lines)]
        shown = text_table(HEAD, [[*map(breakable, line)] for line in lines])
        return Section(TITLE, WORDS, shown, "\n".join(f"| {' | '.join(row)} |" for row in rows))


def read_earlier(folder: Path, rows: Sequence[Row], facts: Mapping[str, Any], labels: Tensor, ids: Tensor) -> Earlier:
    """Returns what the report in ``folder`` holds that ``rows`` do not replace; nothing where it is damaged or missing.

    Args:
        folder: of the report.
        rows: just measured.
        facts: provenance and settings of these.
        labels, ids: int64 [N] of their test images, to recognise stored predictions.
    """
    before = read_evaluated_run(folder)
    if before.problem:
        return Earlier()
    others = [_brief(each) | {"rows": each["rows"]} for each in before.others if _is_evaluation(each)]
    own = _brief(before.provenance) | {"rows": [row.as_dict() for row in _dated(before)]}
    now, kept = _brief(facts), Earlier()
    for each in (*others, own):
        if _identity(each) != _identity(now):
            kept.others.append(plain_values(each))
            kept.moved = each is own
        elif (found := evaluated_rows(each)) is not None:
            kept.rows += found
    replaced = {(row.features, row.protocol) for row in rows}
    latest = {(row.features, row.protocol): row for row in kept.rows}
    kept.rows = [row for key, row in latest.items() if key not in replaced]
    _add_predictions(folder, kept.rows, labels, ids)
    return kept


def _is_evaluation(stored: Any) -> bool:
    """Returns whether an entry of results.json is what this module writes; a file of anybody may hold anything."""
    rows = stored.get("rows") if isinstance(stored, dict) else None
    return isinstance(rows, list) and all(isinstance(row, dict) and {"features", "protocol"} <= {*row} for row in rows)


def _dated(before: EvaluatedRun) -> list[Row]:
    for row in before.rows:
        row.measured = row.measured or before.provenance.get("date")
    return before.rows


def _brief(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tells evaluations apart, and what a reader wants to know of them."""
    checkpoint, data, settings = (_mapping(facts.get(key)) for key in ("checkpoint", "data", "settings"))
    brief: dict[str, Any] = plain_values(
        {
            "date": facts.get("date"),
            "checkpoint": {key: checkpoint.get(key) for key in ("path", "sha256", "step", "encoder")},
            "data": data,
            "views": facts.get("views"),
            "settings": {key: settings.get(key) for key in ("precision", "seed")},
        }
    )
    return brief


def _mapping(found: Any) -> dict[str, Any]:
    return {**found} if isinstance(found, Mapping) else {}


def _identity(brief: Mapping[str, Any]) -> str:
    run = EvaluatedRun(Path(), Path(), provenance={**brief})
    data = run.data()
    prints = [data["train_fingerprint"], data["test_fingerprint"]]
    known = data if None in prints else [*prints, data["test_labels_sha256"], data["train_labels_sha256"]]
    checkpoint = brief["checkpoint"]
    return json.dumps([checkpoint["sha256"], checkpoint["encoder"], known, run.transform(), brief["settings"]])


def _add_predictions(folder: Path, rows: Sequence[Row], labels: Tensor, ids: Tensor) -> None:
    """Fills predictions of rows from the stored ones, where these are of the same images."""
    if not rows:
        return
    try:
        stored = read_predictions(folder)
    except UserError:
        return
    if not torch.equal(stored.labels, labels.cpu()) or not torch.equal(stored.ids, ids.cpu()):
        return
    for row in rows:
        row.predictions = stored.classes.get((row.features, row.protocol))
        row.log_probabilities = stored.log_probabilities.get((row.features, row.protocol))


def _cells(other: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    top1 = row.get("top1")
    number = f"{top1:.2f}" if isinstance(top1, int | float) else "–"
    told = [str(row.get("measured") or other["date"] or "")[:10], str(other["checkpoint"]["step"] or "")]
    return [*told, str(other["data"].get("description") or ""), str(row["features"]), str(row["protocol"]), number]

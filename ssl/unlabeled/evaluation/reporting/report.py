"""Writes the results, every number with its protocol: results.json for programs, a page for people."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from unlabeled.core.environment import plain_values
from unlabeled.core.writing import write_atomic
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting.earlier import Earlier
from unlabeled.evaluation.reporting.markdown import markdown
from unlabeled.evaluation.reporting.page import page
from unlabeled.evaluation.reporting.report_sections import ReportImages, make_sections
from unlabeled.weights import folder_of


def write_report(
    folder: Path,
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
    metrics: Path | None = None,
    collapsed_at: float | None = None,
    report_images: ReportImages | None = None,
    references: Sequence[Mapping[str, Any]] = (),
    earlier: Earlier | None = None,
) -> Path:
    """Writes results.json, report.md with its pictures, and report.html into ``folder``; returns the path of the last.

    Args:
        folder: made if it does not exist.
        rows: the measured numbers.
        provenance: checkpoint, data, seeds, versions, machine, times; nested dicts of plain values and paths.
            ``config`` and ``settings`` are folded, ``git`` is what :func:`git_state` gives.
        metrics: the run's metrics.jsonl, or None.
        collapsed_at: loss of a collapsed network, for the learning curve.
        report_images: inputs of sections with images; None: only numbers and the learning curve.
        earlier: numbers of the report that is replaced; its rows are among ``rows``.
        references: published numbers, as :func:`unlabeled.evaluation.comparison.references.references_for` gives them.

    In results.json numbers are not rounded, and one that is not finite is null.
    """
    results = plain_values(
        {
            "rows": [row.as_dict() for row in rows],
            "provenance": provenance,
            "references": references,
            "earlier": earlier.others if earlier else [],
        }
    )
    write_atomic(folder / "results.json", json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    shown = make_sections(folder, rows, metrics, collapsed_at, report_images)
    past = earlier.section() if earlier else None
    shown += [past] if past else []
    labels = report_images.test.labels if report_images else None
    told, config = results["provenance"], _config(folder, provenance)
    write_atomic(folder / "report.md", markdown(rows, told, shown, references, labels))
    write_atomic(folder / "report.html", page(rows, told, shown, references, labels, config))
    return folder / "report.html"


def _config(folder: Path, provenance: Mapping[str, Any]) -> str | None:
    """Returns the address of the run's config.yaml from the report's folder; None where there is none."""
    checkpoint = provenance.get("checkpoint")
    path = checkpoint.get("path") if isinstance(checkpoint, Mapping) else None
    config = None if path is None else folder_of(Path(path)) / "config.yaml"
    return (
        quote(os.fsencode(os.path.relpath(config, folder))) if config is not None and os.path.isfile(config) else None
    )

"""Writes the report as Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unlabeled.core.escaping import escaped, in_markdown, in_table
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting import run_summary
from unlabeled.evaluation.reporting.chosen import chosen_settings
from unlabeled.evaluation.reporting.results_table import MetricsTable, accuracy_table, markdown_table, other_metrics
from unlabeled.pages.section import Section

TITLE = "Evaluation of frozen features"


def markdown(
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
    sections: Sequence[Section],
    references: Sequence[run_summary.Reference],
    labels: Tensor | None = None,
) -> str:
    """Returns the text of report.md; its pictures lie beside it. ``labels`` of the test images: for paired tests."""
    warnings = run_summary.report_warnings(rows, provenance, references)
    parts = [
        f"# {TITLE}",
        _lines(run_summary.headline(rows)),
        accuracy_table(rows, labels),
        _lines(run_summary.measurement_notes(rows)),
    ]
    parts += ["## Warnings", "\n".join(f"- {in_markdown(warning)}" for warning in warnings)] if warnings else []
    parts += _further(rows)
    parts += ["## Published numbers", _references(references)] if references else []
    parts += [f"## {each.title}\n\n{each.words}\n\n{each.markdown}" for each in sections]
    parts += ["## Chosen hyper-parameters", _chosen(rows), "## Provenance"]
    parts += [_table(["what", "value"], run_summary.provenance_facts(provenance))]
    parts += [_folded(key, provenance[key]) for key in run_summary.FOLDED if provenance.get(key)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _lines(text: str) -> str:
    return "\n".join(map(in_markdown, text.split("\n")))


def _further(rows: Sequence[Row]) -> list[str]:
    shown = [_metrics(table) for table in (other_metrics(rows, True), other_metrics(rows, False)) if table.groups]
    return ["## Further metrics", *shown] if shown else []


def _metrics(table: MetricsTable) -> str:
    lines = [replace(line, name=f"{line.name}, {name}") for name, group in table.groups.items() for line in group]
    return markdown_table(["features", *table.titles], lines)


def _references(references: Sequence[run_summary.Reference]) -> str:
    return _table(run_summary.REFERENCE_HEAD, [run_summary.format_reference(each) for each in references])


def _chosen(rows: Sequence[Row]) -> str:
    lines = []
    for choice in chosen_settings(rows):
        rest = f"; {' and '.join(choice.lists)} of each draw: in results.json" if choice.lists else ""
        lines.append(f"- **{choice.features}**, {in_markdown(choice.protocol)}: {in_markdown(choice.values)}{rest}")
    return "\n".join(lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    texts = [head, ["---"] * len(head), *([_cell(text) for text in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def _folded(key: str, value: Any) -> str:
    text = "\n".join(map(escaped, json.dumps(value, indent=2, ensure_ascii=False).split("\n")))
    return f"<details><summary>{key}</summary>\n\n```json\n{text}\n```\n\n</details>"


def _cell(text: str) -> str:
    return in_table(text.replace("\n", " "))

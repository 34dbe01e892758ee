"""Writes the report as one HTML file: pictures inside, no script, nothing that is fetched."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting import run_summary
from unlabeled.evaluation.reporting.markdown import TITLE
from unlabeled.evaluation.reporting.results_table import GAINS, ResultLine, accuracy_grid, other_metrics
from unlabeled.pages.html import html_page
from unlabeled.pages.parts import Part, breakable, contents, doubts, folded, part_html, part_of_section, text_table
from unlabeled.pages.section import Section
from unlabeled.pages.style import STYLE


def page(
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
    sections: Sequence[Section],
    references: Sequence[run_summary.Reference],
) -> str:
    """Returns the text of report.html."""
    parts = [
        *_results(rows),
        *doubts("Warnings", run_summary.report_warnings(rows, provenance, references)),
        *_further(rows),
        *_references(references),
        *map(part_of_section, sections),
        *_chosen(rows),
        _facts(provenance),
    ]
    body = f"<main>{_opening(rows, provenance)}{contents(parts)}{''.join(map(part_html, parts))}</main>"
    return html_page(f"{TITLE}: {_name(provenance)}", STYLE, body)


def _name(provenance: Mapping[str, Any]) -> str:
    checkpoint = provenance.get("checkpoint") or {}
    return str(checkpoint.get("path", "") if isinstance(checkpoint, Mapping) else checkpoint)


def _opening(rows: Sequence[Row], provenance: Mapping[str, Any]) -> str:
    data = provenance.get("data")
    description = data.get("description", "") if isinstance(data, Mapping) else data
    under = [_name(provenance), str(description or ""), str(provenance.get("date", ""))]
    quiet = " · ".join(breakable(text) for text in under if text)
    headline = f'<p class="headline">{breakable(run_summary.headline(rows))}</p>'
    return f'<header><h1>{TITLE}</h1><p class="quiet">{quiet}</p>{headline}</header>'


def _results(rows: Sequence[Row]) -> list[Part]:
    protocols, lines = accuracy_grid(rows)
    if not protocols:
        return []
    shown = _numbers("top-1, %", protocols, lines)
    return [Part("Results", f"{shown}<p>{escape(run_summary.measurement_notes(rows))}</p>")]


def _numbers(corner: str, protocols: Sequence[str], lines: Sequence[ResultLine]) -> str:
    head = "".join(f'<th class="number" scope="col">{breakable(each)}</th>' for each in protocols)
    body = "".join(_line(line) for line in lines)
    table = f'<table class="results"><thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _line(line: ResultLine) -> str:
    kind = {"pretrained": ' class="ours"', **dict.fromkeys(GAINS.values(), ' class="gain"')}.get(line.name, "")
    cells = "".join(
        f'<td class="number">{cell.number}{"".join(f"<small>{escape(more)}</small>" for more in cell.more)}</td>'
        for cell in line.cells
    )
    return f'<tr{kind}><th scope="row">{escape(line.name)}</th>{cells}</tr>'


def _further(rows: Sequence[Row]) -> list[Part]:
    usual, others = (_metrics(rows, usual) for usual in (True, False))
    further = f"<details><summary>All other metrics</summary>{others}</details>" if others else ""
    return [Part("Further metrics", usual + further)] if usual or further else []


def _metrics(rows: Sequence[Row], usual: bool) -> str:
    protocols, lines = other_metrics(rows, usual)
    return _numbers("metric", protocols, lines) if lines else ""


def _references(references: Sequence[run_summary.Reference]) -> list[Part]:
    lines = [list(map(breakable, run_summary.format_reference(each))) for each in references]
    return [Part("Published numbers", text_table(run_summary.REFERENCE_HEAD, lines))] if lines else []


def _chosen(rows: Sequence[Row]) -> list[Part]:
    lines = [
        [breakable(each.features), breakable(each.protocol), breakable(each.values) + _lists(each.lists)]
        for each in run_summary.chosen_settings(rows)
    ]
    head = ["features", "protocol", "hyper-parameters, and what they were chosen on"]
    return [Part("Chosen hyper-parameters", text_table(head, lines))] if lines else []


def _lists(lists: Mapping[str, Any]) -> str:
    return folded(" and ".join(key.replace("_", " ") for key in lists), lists) if lists else ""


def _facts(provenance: Mapping[str, Any]) -> Part:
    table = text_table(
        ["what", "value"], [list(map(breakable, fact)) for fact in run_summary.provenance_facts(provenance)]
    )
    below = "".join(folded(key, provenance[key]) for key in run_summary.FOLDED if provenance.get(key))
    return Part("Provenance", table + below)

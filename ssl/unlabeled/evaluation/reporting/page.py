"""Writes the report as one HTML file: pictures and script inside, nothing that is fetched."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting import run_summary
from unlabeled.evaluation.reporting.chosen import chosen_tables
from unlabeled.evaluation.reporting.details.pretraining import plan_sentences, pretraining_facts
from unlabeled.evaluation.reporting.markdown import TITLE
from unlabeled.evaluation.reporting.results_table import accuracy_grid, other_metrics, short_names
from unlabeled.evaluation.reporting.templates import FOLDER, report_macros
from unlabeled.pages.html import html_page
from unlabeled.pages.parts import Part, contents, doubts, joined, main_html, part_html, part_of_section, text_table
from unlabeled.pages.section import Section
from unlabeled.pages.style import STYLE
from unlabeled.pages.template import breakable, safe

PAIRED = (
    "p of a difference: McNemar's exact test of the same test images, or Student's paired test of the same draws of "
    "labels; not corrected for the number of columns. A difference with p from 0.05 on has no colour."
)


def page(
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
    sections: Sequence[Section],
    references: Sequence[run_summary.Reference],
    labels: Tensor | None = None,
    config: str | None = None,
) -> str:
    """Returns the text of report.html.

    Args:
        rows: the measured numbers.
        provenance: plain values.
        sections: plots and pictures, in their order.
        references: published numbers.
        labels: int64 [N] of the test images, for paired tests.
        config: address of the run's config.yaml, from the page's folder.
    """
    parts = [
        *(part_of_section(each) for each in sections if each.leads),
        *_results(rows, labels),
        *doubts("Warnings", run_summary.report_warnings(rows, provenance, references)),
        *(part_of_section(each) for each in sections if not each.leads),
        *_pretraining(provenance, config),
        *_references(references),
        *_further(rows),
        *_chosen(rows),
        _facts(provenance),
    ]
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    body = main_html(_opening(rows, provenance), contents(parts), *map(part_html, parts))
    title = f"{TITLE}: {_name(provenance)}"
    return html_page(title, STYLE, joined(body, report_macros().script(safe(script))), _policy(script))


def _policy(script: str) -> str:
    """Lets the browser run this script and load nothing from anywhere, whatever a name may hold."""
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    return str(report_macros().policy(f"{allowed}; base-uri 'none'; form-action 'none'"))


def _name(provenance: Mapping[str, Any]) -> str:
    checkpoint = provenance.get("checkpoint") or {}
    return str(checkpoint.get("path", "") if isinstance(checkpoint, Mapping) else checkpoint)


def _opening(rows: Sequence[Row], provenance: Mapping[str, Any]) -> str:
    data = provenance.get("data")
    description = data.get("description", "") if isinstance(data, Mapping) else data
    under = [_name(provenance), str(description or ""), str(provenance.get("date", "")).replace("T", " ")]
    opening: str = report_macros().opening(TITLE, [text for text in under if text], run_summary.headline(rows))
    return opening


def _results(rows: Sequence[Row], labels: Tensor | None) -> list[Part]:
    protocols, lines = accuracy_grid(rows, labels)
    if not protocols:
        return []
    tested = any(more.startswith("p ") for line in lines for cell in line.cells for more in cell.more)
    notes = [run_summary.measurement_notes(rows), *([PAIRED] if tested else [])]
    return [Part("Results", report_macros().results("top-1, %", protocols, short_names(protocols), lines, notes))]


def _further(rows: Sequence[Row]) -> list[Part]:
    usual, others = (_metrics(rows, usual) for usual in (True, False))
    html = report_macros().further(safe(usual), safe(others))
    return [Part("Further metrics", html, "wide")] if usual or others else []


def _metrics(rows: Sequence[Row], usual: bool) -> str:
    table = other_metrics(rows, usual)
    return str(report_macros().metrics(table, short_names([*table.groups]))) if table.groups else ""


def _references(references: Sequence[run_summary.Reference]) -> list[Part]:
    lines = [list(map(breakable, run_summary.format_reference(each))) for each in references]
    return [Part("Published numbers", text_table(run_summary.REFERENCE_HEAD, lines))] if lines else []


def _chosen(rows: Sequence[Row]) -> list[Part]:
    tables = chosen_tables(rows)
    names = short_names([table.protocol for table in tables])
    return [Part("Chosen hyper-parameters", report_macros().chosen(tables, names))] if tables else []


def _pretraining(provenance: Mapping[str, Any], config: str | None) -> list[Part]:
    facts = pretraining_facts(provenance)
    plan, findings = plan_sentences(provenance.get("plan") or {}), provenance.get("findings")
    told = ["Nothing to warn of."] if findings == [] else findings or []
    html = report_macros().pretrained(facts, config, plan, told)
    return [Part("How it was pretrained", html)] if facts else []


def _facts(provenance: Mapping[str, Any]) -> Part:
    folded = [
        (key, json.dumps(provenance[key], indent=2, ensure_ascii=False))
        for key in run_summary.FOLDED
        if provenance.get(key)
    ]
    return Part("Provenance", report_macros().facts(run_summary.provenance_groups(provenance), folded))

"""Writes the report as one HTML file: pictures inside, no script, nothing that is fetched."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting import run_summary
from unlabeled.evaluation.reporting.markdown import TITLE
from unlabeled.evaluation.reporting.results_table import GAINS, ResultLine, accuracy_grid, other_metrics
from unlabeled.pages.html import html_page
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
        *_warnings(run_summary.report_warnings(rows, provenance, references)),
        *_further(rows),
        *_references(references),
        *(_Part(each.title, _shown(each), "shown wide" if each.wide else "shown") for each in sections),
        *_chosen(rows),
        _facts(provenance),
    ]
    body = f"<main>{_opening(rows, provenance)}{_contents(parts)}{''.join(map(_section, parts))}</main>"
    return html_page(f"{TITLE}: {_name(provenance)}", STYLE, body)


class _Part(NamedTuple):
    title: str
    html: str
    kind: str = ""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def _contents(parts: Sequence[_Part]) -> str:
    links = "".join(f'<a href="#{part.anchor}">{escape(part.title)}</a>' for part in parts)
    return f"<nav>{links}</nav>"


def _section(part: _Part) -> str:
    kind = f' class="{part.kind}"' if part.kind else ""
    return f'<section id="{part.anchor}"{kind}><h2>{escape(part.title)}</h2>{part.html}</section>\n'


def _name(provenance: Mapping[str, Any]) -> str:
    checkpoint = provenance.get("checkpoint") or {}
    return str(checkpoint.get("path", "") if isinstance(checkpoint, Mapping) else checkpoint)


def _opening(rows: Sequence[Row], provenance: Mapping[str, Any]) -> str:
    data = provenance.get("data")
    description = data.get("description", "") if isinstance(data, Mapping) else data
    under = [_name(provenance), str(description or ""), str(provenance.get("date", ""))]
    quiet = " · ".join(_breakable(text) for text in under if text)
    headline = f'<p class="headline">{_breakable(run_summary.headline(rows))}</p>'
    return f'<header><h1>{TITLE}</h1><p class="quiet">{quiet}</p>{headline}</header>'


def _results(rows: Sequence[Row]) -> list[_Part]:
    protocols, lines = accuracy_grid(rows)
    if not protocols:
        return []
    shown = _numbers("top-1, %", protocols, lines)
    return [_Part("Results", f"{shown}<p>{escape(run_summary.measurement_notes(rows))}</p>")]


def _numbers(corner: str, protocols: Sequence[str], lines: Sequence[ResultLine]) -> str:
    head = "".join(f'<th class="number" scope="col">{_breakable(each)}</th>' for each in protocols)
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


def _warnings(found: Sequence[str]) -> list[_Part]:
    items = "".join(f"<li>{_breakable(each)}</li>" for each in found)
    return [_Part("Warnings", f"<ul>{items}</ul>", "doubts")] if found else []


def _further(rows: Sequence[Row]) -> list[_Part]:
    usual, others = (_metrics(rows, usual) for usual in (True, False))
    folded = f"<details><summary>All other metrics</summary>{others}</details>" if others else ""
    return [_Part("Further metrics", usual + folded)] if usual or folded else []


def _metrics(rows: Sequence[Row], usual: bool) -> str:
    protocols, lines = other_metrics(rows, usual)
    return _numbers("metric", protocols, lines) if lines else ""


def _references(references: Sequence[run_summary.Reference]) -> list[_Part]:
    lines = [list(map(_breakable, run_summary.format_reference(each))) for each in references]
    return [_Part("Published numbers", _table(run_summary.REFERENCE_HEAD, lines))] if lines else []


def _shown(section: Section) -> str:
    return f'<p class="quiet">{_breakable(section.words)}</p>{section.html}'


def _chosen(rows: Sequence[Row]) -> list[_Part]:
    lines = [
        [_breakable(each.features), _breakable(each.protocol), _breakable(each.values) + _lists(each.lists)]
        for each in run_summary.chosen_settings(rows)
    ]
    head = ["features", "protocol", "hyper-parameters, and what they were chosen on"]
    return [_Part("Chosen hyper-parameters", _table(head, lines))] if lines else []


def _lists(lists: Mapping[str, Any]) -> str:
    return _folded(" and ".join(key.replace("_", " ") for key in lists), lists) if lists else ""


def _facts(provenance: Mapping[str, Any]) -> _Part:
    table = _table(
        ["what", "value"], [list(map(_breakable, fact)) for fact in run_summary.provenance_facts(provenance)]
    )
    folded = "".join(_folded(key, provenance[key]) for key in run_summary.FOLDED if provenance.get(key))
    return _Part("Provenance", table + folded)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Formats a table; ``lines`` hold the HTML of the cells."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table class="texts"><tr>{titles}</tr>{rows}</table></div>'


def _folded(key: str, value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(key)}</summary><pre>{escape(text)}</pre></details>"


def _breakable(text: str) -> str:
    """Allows line breaks after a slash and within a long key: protocols, paths and keys have no spaces."""
    whole = escape(text).replace("/", "/<wbr>")
    return whole if " " in text else whole.replace("_", "_<wbr>").replace(".", ".<wbr>")

"""The report as one HTML file: pictures inside, no script, nothing that is fetched."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from unlabeled.evaluation import account
from unlabeled.evaluation.judge import Row
from unlabeled.evaluation.markdown import TITLE
from unlabeled.evaluation.page_style import STYLE
from unlabeled.evaluation.results_table import GAIN, Line, further, grid
from unlabeled.evaluation.section import Section
from unlabeled.html import shell


def page(
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
    sections: Sequence[Section],
    references: Sequence[account.Reference],
) -> str:
    """The text of report.html."""
    parts = [
        _opening(rows, provenance),
        _results(rows),
        _doubts(account.doubts(rows, provenance, references)),
        _further(rows),
        _references(references),
        f'<div class="sections">{"".join(map(_section, sections))}</div>',
        _chosen(rows),
        _facts(provenance),
    ]
    return shell(f"{TITLE}: {_name(provenance)}", STYLE, f"<main>{''.join(parts)}</main>")


def _name(provenance: Mapping[str, Any]) -> str:
    checkpoint = provenance.get("checkpoint") or {}
    return str(checkpoint.get("path", "") if isinstance(checkpoint, Mapping) else checkpoint)


def _opening(rows: Sequence[Row], provenance: Mapping[str, Any]) -> str:
    data = provenance.get("data")
    description = data.get("description", "") if isinstance(data, Mapping) else data
    under = [_name(provenance), str(description or ""), str(provenance.get("date", ""))]
    quiet = " · ".join(_breakable(text) for text in under if text)
    headline = f'<p class="headline">{_breakable(account.headline(rows))}</p>'
    return f'<header><h1>{TITLE}</h1><p class="quiet">{quiet}</p>{headline}</header>'


def _results(rows: Sequence[Row]) -> str:
    protocols, lines = grid(rows)
    if not protocols:
        return ""
    shown = _numbers("top-1, %", protocols, lines)
    return f"<section><h2>Results</h2>{shown}<p>{escape(account.how_measured(rows))}</p></section>"


def _numbers(corner: str, protocols: Sequence[str], lines: Sequence[Line]) -> str:
    head = "".join(f'<th class="number" scope="col">{_breakable(each)}</th>' for each in protocols)
    body = "".join(_line(line) for line in lines)
    table = f'<table class="results"><thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _line(line: Line) -> str:
    kind = {"pretrained": ' class="ours"', GAIN: ' class="gain"'}.get(line.name, "")
    cells = "".join(
        f'<td class="number">{cell.number}{"".join(f"<small>{escape(more)}</small>" for more in cell.more)}</td>'
        for cell in line.cells
    )
    return f'<tr{kind}><th scope="row">{escape(line.name)}</th>{cells}</tr>'


def _doubts(found: Sequence[str]) -> str:
    if not found:
        return ""
    items = "".join(f"<li>{_breakable(each)}</li>" for each in found)
    return f'<section class="doubts"><h2>What to doubt</h2><ul>{items}</ul></section>'


def _further(rows: Sequence[Row]) -> str:
    protocols, lines = further(rows)
    return f"<section><h2>Further metrics</h2>{_numbers('metric', protocols, lines)}</section>" if lines else ""


def _references(references: Sequence[account.Reference]) -> str:
    if not references:
        return ""
    lines = [account.reference_line(each) for each in references]
    return f"<section><h2>Published numbers</h2>{_table(account.REFERENCE_HEAD, lines)}</section>"


def _section(section: Section) -> str:
    kind = ' class="wide"' if section.wide else ""
    words = f'<p class="quiet">{_breakable(section.words)}</p>'
    return f"<section{kind}><h2>{escape(section.title)}</h2>{words}{section.html}</section>\n"


def _chosen(rows: Sequence[Row]) -> str:
    lines = [[features, protocol, what or "nothing"] for features, protocol, what in account.chosen(rows)]
    head = ["features", "protocol", "hyper-parameters, and what they were chosen on"]
    return f"<section><h2>What was chosen</h2>{_table(head, lines)}</section>" if lines else ""


def _facts(provenance: Mapping[str, Any]) -> str:
    table = _table(["what", "value"], account.facts(provenance))
    folded = "".join(_folded(key, provenance[key]) for key in account.FOLDED if provenance.get(key))
    return f"<section><h2>Where the numbers come from</h2>{table}{folded}</section>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    rows = "".join(f"<tr>{''.join(f'<td>{_breakable(text)}</td>' for text in line)}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table class="texts"><tr>{titles}</tr>{rows}</table></div>'


def _folded(key: str, value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(key)}</summary><pre>{escape(text)}</pre></details>"


def _breakable(text: str) -> str:
    """A line may end after a slash: protocols and paths are long."""
    return escape(text).replace("/", "/<wbr>")

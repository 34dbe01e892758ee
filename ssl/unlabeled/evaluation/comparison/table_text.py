"""A table of many runs, formatted as Markdown, CSV or LaTeX."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unlabeled.core.escaping import escaped, in_csv, in_markdown, in_table
from unlabeled.evaluation.statistics import Interval

MISSING, FAILED = "–", "✗"
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MISSING: "--"}
LATEX |= {FAILED: r"$\times$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "…": r"\dots{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
TIDY = ["run", "seeds", "protocol", "top1", "deviation", "low", "high", "state", "data", "test_labels_sha256"]


@dataclass(frozen=True)
class TableColumn:
    """Settings that numbers must share to stand in one column; all but the protocol as JSON."""

    protocol: str
    data: str  # identity of the data set
    transform: str
    described: str = field(compare=False)  # the data, for people


@dataclass
class TableCell:
    """A number of the table; ``None`` where the probe failed."""

    mean: float | None
    deviation: float | None = None  # over seeds, of the sample
    n: int = 1  # seeds
    interval: Interval | None = None  # 95 %: of one run over test images, of several seeds over seeds


@dataclass
class TableLine:
    """Runs of one configuration, or a baseline."""

    name: str
    seeds: int
    cells: dict[TableColumn, TableCell] = field(default_factory=dict)
    broken: int = 0  # further runs of this line that cannot be read
    baseline: bool = False


@dataclass
class ComparisonTable:
    """The lines, all their columns, and the notes below."""

    lines: list[TableLine]
    columns: list[TableColumn]
    notes: list[str]


def as_markdown(table: ComparisonTable) -> str:
    """Formats the table with a line per configuration and a column per protocol, the highest bold, and the notes."""
    titles, legend = _titles(table.columns)
    body = [[line.name, _seeds(line), *_texts(line, table, "**{}**")] for line in table.lines]
    lines = [["top-1, %", "seeds", *titles], ["---", "---:", *["---:"] * len(titles)], *body]
    rows = ["| " + " | ".join(map(in_table, line)) + " |" for line in lines]
    below = [f"- {in_markdown(sentence)}" for sentence in [*legend, *_reading(table), *table.notes]]
    return "\n".join([*rows, "", *below]) + "\n"


def as_latex(table: ComparisonTable) -> str:
    """Formats the same as a tabular of booktabs, with all text escaped."""
    titles, legend = _titles(table.columns)
    lines = [[line.name, _seeds(line), *_texts(line, table, "{}")] for line in table.lines]
    best = _best(table)
    body = [[_behind_a_line(escape_latex(cell)) for cell in line] for line in lines]
    for number, line in enumerate(table.lines):
        for place, column in enumerate(table.columns, 2):
            if best.get(column) is line:
                body[number][place] = rf"\textbf{{{body[number][place]}}}"
    head = " & ".join(map(escape_latex, ["top-1, %", "seeds", *titles]))
    rows = ["  " + " & ".join(line) + r" \\" for line in body]
    below = [_behind_a_line(escape_latex(sentence)) + r"\\" for sentence in [*legend, *_reading(table), *table.notes]]
    start = ["% \\usepackage{booktabs}", rf"\begin{{tabular}}{{lr{'r' * len(titles)}}}", r"  \toprule"]
    end = [r"  \bottomrule", r"\end{tabular}", r"\par\smallskip{\footnotesize\noindent", *below, "}"]
    return "\n".join([*start, f"  {head} \\\\", r"  \midrule", *rows, *end]) + "\n"


def _behind_a_line(text: str) -> str:
    """A bracket or a star behind a line break would be LaTeX's argument of it."""
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def as_csv(table: ComparisonTable) -> str:
    """Formats a line per number, unrounded; empty where there is none. ``state``: measured, not measured or failed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*TIDY, "transform"])
    for line in table.lines:
        for column in table.columns:
            cell, data = line.cells.get(column), json.loads(column.described)
            low, high = cell.interval if cell and cell.interval else (None, None)
            numbers = [cell.mean, cell.deviation, low, high] if cell else [None] * 4
            known = [in_csv(data.get(key) or "") for key in ("description", "test_labels_sha256")]
            seeds = cell.n if cell and cell.mean is not None else 0
            named, protocol = in_csv(line.name), in_csv(column.protocol)
            row = [named, seeds, protocol, *numbers, _state(line, cell), *known, in_csv(column.transform)]
            writer.writerow(row)
    return text.getvalue()


FORMATS: dict[str, Callable[[ComparisonTable], str]] = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def escape_latex(text: str) -> str:
    """Escapes every character that LaTeX would read as a command."""
    return "".join(LATEX.get(character, character) for character in escaped(text))


def _titles(columns: list[TableColumn]) -> tuple[list[str], list[str]]:
    """Returns column titles, with letters where data sets or transforms differ, and the meanings of the letters."""
    kinds = {(column.data, column.transform): column for column in reversed(columns)}
    kinds = dict(reversed(kinds.items()))
    if len(kinds) == 1:
        return [column.protocol for column in columns], [f"{_described(columns[0])}."]
    letters = {kind: f"({_letter(number)})" for number, kind in enumerate(kinds)}
    titles = [f"{column.protocol} {letters[column.data, column.transform]}" for column in columns]
    return titles, [f"{letters[kind]} {_described(column)}." for kind, column in kinds.items()]


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else str(number + 1)


def _described(column: TableColumn) -> str:
    known, seen = json.loads(column.described), json.loads(column.transform)
    names = {"test_labels_sha256": "test labels", "test_fingerprint": "test images"}
    hashes = [f"{name} {known[key][:8]}" for key, name in names.items() if known.get(key)]
    how = ", ".join(f"{key} {_short(value)}" for key, value in seen.items() if value is not None)
    parts = [known.get("description") or "unknown data", *hashes, f"seen with {how or 'an unknown transform'}"]
    return "; ".join(parts)


def _short(value: Any) -> str:
    numbers = isinstance(value, list) and all(isinstance(each, int | float) for each in value)
    return f"[{', '.join(f'{each:g}' for each in value)}]" if numbers else str(value)


def _seeds(line: TableLine) -> str:
    if line.baseline and line.seeds == 1:
        return MISSING
    return " + ".join([str(line.seeds)] * (line.seeds > 0) + [f"{line.broken} {FAILED}"] * (line.broken > 0))


def _texts(line: TableLine, table: ComparisonTable, bold: str) -> list[str]:
    best = _best(table)
    texts = []
    for column in table.columns:
        text = _text(line, line.cells.get(column))
        texts.append(bold.format(text) if best.get(column) is line else text)
    return texts


def _text(line: TableLine, cell: TableCell | None) -> str:
    if cell is None or cell.mean is None:
        return FAILED if _state(line, cell) == "failed" else MISSING
    if cell.deviation is not None:
        return f"{cell.mean:.2f} ± {cell.deviation:.2f}" + (f" (n = {cell.n})" if cell.n != line.seeds else "")
    between = f" ({cell.interval[0]:.2f} to {cell.interval[1]:.2f})" if cell.interval else ""
    return f"{cell.mean:.2f}{between}" + (f" (n = {cell.n})" if cell.n != line.seeds else "")


def _state(line: TableLine, cell: TableCell | None) -> str:
    if cell is None:
        return "failed" if line.broken and not line.seeds else "not measured"
    return "failed" if cell.mean is None else "measured"


def _best(table: ComparisonTable) -> dict[TableColumn, TableLine]:
    """Returns for each column the line with the highest number, if there are two or more; baselines are never bold."""
    best = {}
    for column in table.columns:
        cells = [(line, line.cells.get(column)) for line in table.lines if not line.baseline]
        means = [(cell.mean, line) for line, cell in cells if cell is not None and cell.mean is not None]
        if len(means) > 1:
            best[column] = max(means, key=lambda pair: pair[0])[1]
    return best


def _reading(table: ComparisonTable) -> list[str]:
    cells = [cell for line in table.lines for cell in line.cells.values() if cell.mean is not None]
    sentences = []
    if any(cell.interval and cell.deviation is None for cell in cells):
        sentences.append("One run: its interval of 95 %, over test images, and draws of labels where there are some.")
    if any(cell.deviation is not None for cell in cells):
        sentences.append("Several seeds: mean ± deviation of the sample.")
    if _best(table):
        sentences.append(
            "Bold is the highest of a column. Numbers within each other's intervals or deviations do not differ; "
            "unlabeled compare RUN_A RUN_B tests it."
        )
    texts = {_text(line, line.cells.get(column)) for line in table.lines for column in table.columns}
    if MISSING in texts:
        sentences.append(f"{MISSING}: not measured.")
    if FAILED in texts or any(line.broken for line in table.lines):
        sentences.append(f"{FAILED}: failed, damaged or not evaluated; the reason is below.")
    return sentences

"""What a transfer table is written as: a page, Markdown, LaTeX, and JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlabeled.core.environment import plain_values
from unlabeled.core.escaping import in_markdown
from unlabeled.core.writing import write_atomic
from unlabeled.downstream.transfer_table import TaskResult, TransferTable, as_rows, headline, markdown_table
from unlabeled.evaluation.comparison.table_text import escape_latex
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.parts import Part, number_table, sheet, shown_part
from unlabeled.pages.plots import INK, new_figure, plain_text, style_axes
from unlabeled.pages.section import Section, plot_section
from unlabeled.pages.template import shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Transfer of frozen features"
HOW = (
    "linear: logistic regression of the frozen features; of all values of C the one with the highest metric on the "
    "validation split is taken, the classifier is fitted again on train and validation, and the test split is used "
    "once. k-NN: train and validation are the bank. N a class: logistic regression on N images of each class of train, "
    "mean of the draws. All numbers are per cent of the metric in the second column; * is the highest of a line. "
    "Won and lost: data sets on which the first network is better or worse by McNemar's exact test of the test images, "
    "p below 0.05 after Holm's correction for their number."
)


def write_transfer(folder: Path, table: TransferTable, facts: Mapping[str, Any]) -> Path:
    """Writes all files into ``folder``, which is made if it is missing, and returns the page."""
    sections = [_few(table, folder)] if len(_shots(table)) > 1 else []
    content = plain_values({"networks": table.networks, "tasks": [_values(each) for each in table.tasks]})
    content |= {"summaries": _summaries(table), "provenance": plain_values(facts)}
    write_atomic(folder / "transfer.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomic(folder / "transfer.md", as_markdown(table, sections, facts))
    write_atomic(folder / "transfer.tex", as_latex(table))
    write_atomic(folder / "transfer.html", _page(table, sections, facts))
    return folder / "transfer.html"


def as_markdown(table: TransferTable, sections: Sequence[Section] = (), facts: Mapping[str, Any] | None = None) -> str:
    """Returns one table for each protocol, the wins and losses, the data sets, and what could not be had."""
    parts = [f"# {TITLE}", in_markdown(headline(table)), HOW]
    for protocol in table.protocols:
        parts += [f"## {protocol}", markdown_table(["data set", "metric", *table.networks], as_rows(table, protocol))]
    if len(table.networks) > 1 and table.measured:
        parts += [f"## {table.networks[0]} against each", markdown_table(AGAINST, against_rows(table))]
    parts += [f"## {each.title}\n\n{each.words}\n\n{each.markdown}" for each in sections]
    parts += ["## Data sets", markdown_table(SETS_HEAD, _set_rows(table))]
    parts += [f"    {facts['command']}"] if facts else []
    return "\n\n".join(parts) + "\n"


def as_latex(table: TransferTable) -> str:
    """Returns the linear table as a tabular of booktabs, a column for each data set, a line for each network."""
    if not table.measured:
        return f"% {headline(table)}\n"
    protocol = table.protocols[0]
    names = [task.name for task in table.measured]
    summaries = table.summaries(protocol)
    lines = []
    for place, network in enumerate(table.networks):
        numbers = [f"{value:.1f}" for value in table.values(protocol)[:, place]]
        numbers += [f"{summaries[place].mean:.1f}", f"{summaries[place].rank:.2f}"]
        lines.append(" & ".join([escape_latex(network), *numbers]) + r" \\")
    head = " & ".join(map(escape_latex, ["", *names, "mean", "rank"])) + r" \\"
    start = ["% \\usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * (len(names) + 2)}}}", r"\toprule"]
    return "\n".join([*start, head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


AGAINST = ["protocol", "network", "won", "lost", "mean difference"]


def against_rows(table: TransferTable) -> list[list[str]]:
    """Returns wins, losses and the mean difference in points of the first network against each other one."""
    lines = []
    for protocol in table.protocols:
        first, *others = table.summaries(protocol)
        for other in others:
            counts = ["–" if count is None else str(count) for count in (other.wins, other.losses)]
            lines.append([protocol, other.network, *counts, f"{first.mean - other.mean:+.2f}"])
    return lines


SETS_HEAD = ["data set", "what it is"]


def _set_rows(table: TransferTable) -> list[list[str]]:
    return [[task.name, task.problem or _described(task.facts)] for task in table.tasks]


def _described(facts: Mapping[str, Any]) -> str:
    whose = "published validation split" if facts["published_validation"] else "validation: a fifth of train"
    counts = f"{facts['train']:,} train, {facts['validation']:,} validation, {facts['test']:,} test images"
    return f"{facts['description']}; {counts}, {facts['classes']} classes; {whose}"


def _shots(table: TransferTable) -> list[tuple[int, str]]:
    return [(int(name.split()[0]), name) for name in table.protocols if name.endswith(" a class")]


def _few(table: TransferTable, folder: Path) -> Section:
    draws = len(table.measured[0].of(table.networks[0], _shots(table)[0][1]).draws)
    words = f"Mean over the data sets of the metric, by labelled images of each class; {draws} draws of each."
    return plot_section(_curve(table), folder, "few_images", "Few images of a class", words, wide=True)


def _curve(table: TransferTable) -> "Figure":
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    counts = [count for count, _ in _shots(table)]
    for place, name in enumerate(table.networks):
        means = [table.values(protocol)[:, place].mean() for _, protocol in _shots(table)]
        axes.plot(
            counts, means, color=PALETTE[place % len(PALETTE)], marker="o", markersize=3.5, label=plain_text(name, 40)
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("labelled images of a class", color=INK)
    style_axes(axes, "mean in %")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _values(task: TaskResult) -> dict[str, Any]:
    if task.problem is not None:
        return {"name": task.name, "problem": task.problem}
    judged = {
        network: {
            each.protocol: {"value": each.value, "draws": each.draws, **each.facts} for each in task.judged[network]
        }
        for network in task.judged
    }
    return {"name": task.name, "metric": task.metric, **task.facts, "judged": judged}


def _summaries(table: TransferTable) -> dict[str, Any]:
    return {
        protocol: {
            each.network: {"mean": each.mean, "rank": each.rank, "won": each.wins, "lost": each.losses}
            for each in table.summaries(protocol)
        }
        for protocol in table.protocols
    }


def _page(table: TransferTable, sections: Sequence[Section], facts: Mapping[str, Any]) -> str:
    head = ["data set", "metric", *table.networks]
    parts = [Part(each, number_table(head, as_rows(table, each)), "wide") for each in table.protocols]
    if len(table.networks) > 1 and table.measured:
        rows = number_table(AGAINST, against_rows(table))
        parts.append(Part(f"{table.networks[0]} against each", rows, "wide"))
    parts += [shown_part(each.title, each.words, each.html) for each in sections]
    parts.append(Part("How to read it", shared().paragraphs([HOW]), "wide"))
    parts.append(Part("Data sets", shared().defined(_set_rows(table)), "wide"))
    return sheet(TITLE, [str(facts["date"])], headline(table), parts, facts)

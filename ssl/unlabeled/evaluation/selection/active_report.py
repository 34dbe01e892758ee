"""What active learning found: active.json for programs, a page, Markdown and a plot for people, lists of images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unlabeled.core.environment import plain_values
from unlabeled.core.escaping import in_markdown
from unlabeled.core.writing import write_atomic
from unlabeled.evaluation.selection.active_result import TABLE, Active, number, table_cells
from unlabeled.evaluation.selection.course import Course
from unlabeled.evaluation.selection.strategies import BEGIN_AT_RANDOM, RANDOM
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.parts import Part, joined, number_table, sheet, shown_part
from unlabeled.pages.plots import INK, new_figure, style_axes
from unlabeled.pages.section import Section, Tile, plot_section, save_columns, tiles_html
from unlabeled.pages.template import shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Active learning on frozen features"
SHOWN = 8  # images that each strategy asked for first
GREY = PALETTE[8]  # of random, which is nobody's colour


def curve(found: Active) -> "Figure":
    """Draws accuracy against labels, mean of the seeds with its 95 % interval as a band; random is grey."""
    figure = new_figure(3.4)
    axes = figure.add_subplot()
    for place, (name, each) in enumerate(found.savings.items()):
        colour = GREY if name == RANDOM else PALETTE[(place - 1) % len(PALETTE)]
        ends = [value.interval or (value.mean, value.mean) for value in each.top1]
        low, high = zip(*ends, strict=True)
        axes.fill_between(found.counts, low, high, color=colour, alpha=0.18, linewidth=0)
        means = [value.mean for value in each.top1]
        axes.plot(found.counts, means, color=colour, linewidth=1.4, marker="o", markersize=3.5, label=name)
    axes.axhline(found.savings[RANDOM].top1[-1].mean, color=GREY, linestyle="--", linewidth=0.9)
    axes.set_xlabel("labelled images", color=INK)
    style_axes(axes, "top-1 of the test images in %")
    lowest, highest = axes.get_ylim()
    axes.set_ylim(max(0, lowest), min(100, highest))  # the interval of few seeds may be wider than there is room
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def write_active(
    folder: Path, found: Active, facts: Mapping[str, Any], images: Callable[[Sequence[int]], Tensor]
) -> Path:
    """Writes all files and returns the page.

    Args:
        folder: made if it is missing.
        found: the courses.
        facts: command, checkpoint, data, settings, versions: nested dicts of plain values.
        images: rows of the pool → float [n, 3, h, w] in [0, 1].
    """
    sections = [_accuracy(found, folder), _first_images(found, folder, images)]
    values = plain_values({"counts": found.counts, "strategies": _values(found), "provenance": facts})
    write_atomic(folder / "active.json", json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    for name, text in found.lists().items():
        write_atomic(folder / "lists" / name, text, sync=False)
    write_atomic(folder / "active.md", _markdown(found, sections, facts))
    write_atomic(folder / "active.html", _page(found, sections, facts))
    return folder / "active.html"


def _values(found: Active) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, each in found.savings.items():
        ours = [course for course in found.courses if course.strategy == name]
        parts = {key: asdict(getattr(each, key)) for key in ("gain", "last_gain", "saved")}
        values[name] = parts | {"top1": [asdict(value) for value in each.top1]}
        values[name]["seeds"] = {
            str(course.seed): {"top1": course.top1, "c": course.c, "rounds": _rounds(course, found.names)}
            for course in ours
        }
    return values


def _rounds(course: Course, names: Sequence[str]) -> list[list[str]]:
    """Returns the names that each round asked for."""
    return [[names[row] for row in course.asked[first:last]] for first, last in pairwise([0, *course.counts])]


def _accuracy(found: Active, folder: Path) -> Section:
    seeds = len({each.seed for each in found.courses})
    words = (
        f"Mean of {seeds} seeds; the band is the 95 % interval of the mean over seeds (Student's t), for these test "
        "images. Dashed: random's last accuracy."
    )
    return plot_section(curve(found), folder, "active", "Accuracy by labels", words, wide=True)


def _first_images(found: Active, folder: Path, images: Callable[[Sequence[int]], Tensor]) -> Section:
    first, start = found.courses[0].seed, found.counts[0]
    own = {each.strategy: start if each.strategy in BEGIN_AT_RANDOM else 0 for each in found.courses}
    asked = {each.strategy: each.asked[own[each.strategy] :][:SHOWN] for each in found.courses if each.seed == first}
    shown = {name: list(images(rows).cpu()) for name, rows in asked.items()}
    save_columns(shown, folder / "first_images.png")
    rows = joined(
        *(
            tiles_html(name, [Tile(pixels, [str(place)]) for place, pixels in enumerate(pixels_of, 1)])
            for name, pixels_of in shown.items()
        )
    )
    title = "Images that were asked for first"
    words = (
        f"In the order of asking, seed {first}; of strategies that begin with the images of random the first that they "
        "chose themselves."
    )
    return Section(title, words, rows, f"![{title}](first_images.png)", wide=True)


HOW = (
    "A round is one fit of the linear probe on the labels so far. A label of the pool is revealed when a strategy asks "
    "for it, and not before; test labels give the accuracy alone. Labels saved: the number of random labels from which "
    "on the accuracy stays at or above the lower of both last accuracies, minus that of the strategy, seed by seed; "
    "negative where random gets there with fewer. Brackets: 95 % intervals of the mean over seeds."
)


def _markdown(found: Active, sections: Sequence[Section], facts: Mapping[str, Any]) -> str:
    parts = [
        f"# {TITLE}",
        in_markdown(found.headline),
        found.table,
        HOW,
        "## Accuracy in each round",
        _rounds_table(found),
    ]
    parts += [f"## {each.title}\n\n{each.words}\n\n{each.markdown}" for each in sections]
    parts += [f"    {facts['command']}\n\n{in_markdown(_under(facts))}"]
    return "\n\n".join(parts) + "\n"


def _rounds_table(found: Active) -> str:
    lines = [["labels", *found.savings], ["---:"] * (1 + len(found.savings))]
    lines += [[f"{count:,}", *cells] for count, *cells in _round_cells(found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _round_cells(found: Active) -> list[list[Any]]:
    return [
        [count, *(number(each.top1[place], ".2f") for each in found.savings.values())]
        for place, count in enumerate(found.counts)
    ]


def _under(facts: Mapping[str, Any]) -> str:
    return " · ".join([facts["checkpoint"]["path"], facts["data"]["description"], facts["date"]])


def _page(found: Active, sections: Sequence[Section], facts: Mapping[str, Any]) -> str:
    summary = number_table(["strategy", *TABLE], [[name, *cells] for name, cells in table_cells(found)])
    rounds = [[f"{count:,}", *cells] for count, *cells in _round_cells(found)]
    parts = [
        Part("Labels saved", joined(summary, shared().paragraphs([HOW]))),
        *(shown_part(each.title, each.words, each.html) for each in sections),
        Part("Accuracy in each round", number_table(["labels", *found.savings], rounds)),
    ]
    return sheet(TITLE, [_under(facts)], found.headline, parts, facts)

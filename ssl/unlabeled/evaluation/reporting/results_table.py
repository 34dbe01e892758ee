"""The table of a report: a line per kind of features, a column per protocol, so that no column mixes protocols."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from unlabeled.core.escaping import in_table
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.probe import MEAN_PER_CLASS

ORDER = ["pretrained", "start", "random init", "raw pixels"]
GAINS = {name: f"pretrained − {name}" for name in ("start", "random init", "raw pixels")}  # over what it has to beat
CHANCE = {"chance/majority-class": "chance: largest class of test", "chance/uniform": "chance: uniform guess"}
NOTHING = "–"
RANKED = ["top5", "recall_at_5", "recall_at_10", "map", "map_at_r"]  # in per cent
DEFAULT_METRICS = [*RANKED, "nmi", "ari", "nll", "brier", "ece", "ece_after_temperature"]
METRIC_TITLES = {"brier": "Brier", "top5": "top-5", "map": "mAP", "r": "R"} | {
    name: name.upper() for name in ("nmi", "ari", "nll", "ece", "auroc", "aurc", "aupr")
}


@dataclass(frozen=True)
class ResultCell:
    """One number as text, with its uncertainty."""

    number: str
    more: tuple[str, ...] = ()  # "± 0.41" over draws, "[71.20, 73.45]" from test images

    def __str__(self) -> str:
        return " ".join([self.number, *self.more])


@dataclass(frozen=True)
class ResultLine:
    """A line of the table."""

    name: str
    cells: list[ResultCell]


def accuracy_grid(rows: Sequence[Row]) -> tuple[list[str], list[ResultLine]]:
    """Returns protocols, and the lines below them: top-1 in per cent of the test images.

    "–" means not measured. Chance uses no features, so that its numbers are in every column. For imbalanced classes the
    means over classes follow.
    """
    measured = [row for row in rows if row.features != "chance"]
    protocols = list(dict.fromkeys(row.protocol for row in measured))
    found = {(row.features, row.protocol): row for row in measured}
    lines = [ResultLine(name, [_cell(found.get((name, p))) for p in protocols]) for name in feature_kinds(measured)]
    for name, title in GAINS.items():
        if {"pretrained", name} <= {row.features for row in measured}:
            gains = [_gain(found.get(("pretrained", p)), found.get((name, p))) for p in protocols]
            lines.insert([line.name for line in lines].index(name) + 1, ResultLine(title, gains))
    chance = [row for row in rows if row.features == "chance"]
    lines += [ResultLine(CHANCE.get(row.protocol, row.protocol), [_cell(row)] * len(protocols)) for row in chance]
    for name in feature_kinds(measured):
        lines += _per_class(name, [found.get((name, p)) for p in protocols])
    for row in chance:
        lines += _per_class(CHANCE.get(row.protocol, row.protocol), [row] * len(protocols))
    return protocols, lines


def other_metrics(rows: Sequence[Row], usual: bool) -> tuple[list[str], list[ResultLine]]:
    """Returns the same for other metrics: a line per metric and kind, under the protocols that have any.

    ``usual``: those that most papers give; otherwise all others, with dozens for uncertainty.
    """
    chosen = [
        name for row in rows for name in row.metrics if (name in DEFAULT_METRICS) == usual and name != MEAN_PER_CLASS
    ]
    chosen.sort(key=lambda name: DEFAULT_METRICS.index(name) if name in DEFAULT_METRICS else 0)
    measured = [row for row in rows if set(row.metrics) & set(chosen)]
    protocols = list(dict.fromkeys(row.protocol for row in measured))
    found = {(row.features, row.protocol): row.metrics for row in measured}
    lines = []
    for metric in dict.fromkeys(chosen):
        for name in feature_kinds(measured):
            values = [found.get((name, p), {}).get(metric) for p in protocols]
            if any(value is not None for value in values):
                cells = [ResultCell(NOTHING if value is None else f"{value:.4g}") for value in values]
                lines.append(ResultLine(f"{_metric(metric)}, {name}", cells))
    return protocols, lines


def accuracy_table(rows: Sequence[Row]) -> str:
    """Formats top-1 in per cent as a markdown table, with deviations over draws and 95 % intervals if there are any."""
    protocols, lines = accuracy_grid(rows)
    return markdown_table(["top-1, %", *protocols], lines)


def markdown_table(head: Sequence[str], lines: Sequence[ResultLine]) -> str:
    """Formats columns of equal width, numbers on the right."""
    texts = [list(head), *([line.name, *map(str, line.cells)] for line in lines)]
    texts = [[in_table(text) for text in line] for line in texts]
    widths = [max(3, *map(len, column)) for column in zip(*texts, strict=True)]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    aligned = [
        [line[0].ljust(widths[0])] + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        for line in texts
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [aligned[0], rule, *aligned[1:]])


def feature_kinds(rows: Sequence[Row]) -> list[str]:
    """Returns the kinds of features: pretrained, random, pixels, then all others."""
    present = dict.fromkeys(row.features for row in rows)
    return [name for name in ORDER if name in present] + [name for name in present if name not in ORDER]


def format_signed(points: float) -> str:
    """Formats a number with its sign, and a minus as wide as a plus."""
    return f"{points:+.2f}".replace("-", "−")


def format_uncertainty(row: Row) -> tuple[str, ...]:
    """Returns the sample standard deviation over draws and the 95 % interval, each where there is one."""
    deviation = (f"± {statistics.stdev(row.draws):.2f}",) if len(row.draws) > 1 else ()
    interval = (f"[{row.interval[0]:.2f}, {row.interval[1]:.2f}]",) if row.interval else ()
    return deviation + interval


def _metric(key: str) -> str:
    """Formats the key of a metric: ``ece_after_temperature`` becomes ECE after temperature."""
    title = " ".join(METRIC_TITLES.get(word, word) for word in key.split("_"))
    return f"{title}, %" if key in RANKED else title


def _cell(row: Row | None) -> ResultCell:
    return ResultCell(NOTHING) if row is None else ResultCell(f"{row.top1:.2f}", format_uncertainty(row))


def _per_class(name: str, rows: Sequence[Row | None]) -> list[ResultLine]:
    """Returns a line of means over classes, where there are some."""
    values = [None if row is None else row.metrics.get(MEAN_PER_CLASS) for row in rows]
    cells = [ResultCell(NOTHING if value is None else f"{value:.2f}") for value in values]
    return [] if set(values) <= {None} else [ResultLine(f"{name}, mean over classes", cells)]


def _gain(ours: Row | None, random: Row | None) -> ResultCell:
    return ResultCell(NOTHING) if ours is None or random is None else ResultCell(format_signed(ours.top1 - random.top1))

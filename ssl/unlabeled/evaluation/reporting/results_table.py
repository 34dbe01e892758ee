"""The table of a report: a line per kind of features, a column per protocol, so that no column mixes protocols."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unlabeled.core.escaping import in_table
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.probe import MEAN_PER_CLASS
from unlabeled.evaluation.statistics import mcnemar_test, paired_draws_test

ORDER = ["pretrained", "start", "random init", "raw pixels"]
GAINS = {name: f"pretrained − {name}" for name in ("start", "random init", "raw pixels")}  # over what it has to beat
CHANCE = {"chance/majority-class": "chance: largest class of test", "chance/uniform": "chance: uniform guess"}
NOTHING = "–"
RANKED = ["top5", "recall_at_5", "recall_at_10", "map", "map_at_r"]  # in per cent
DEFAULT_METRICS = [*RANKED, "nmi", "ari", "nll", "brier", "ece", "ece_after_temperature"]
METRIC_TITLES = {"brier": "Brier", "top5": "top-5", "map": "mAP", "r": "R"} | {
    name: name.upper() for name in ("nmi", "ari", "nll", "ece", "auroc", "aurc", "aupr")
}
SIGNIFICANT = 0.05  # p from which on a difference is called neither gain nor loss
PROBES = {"knn": "k-NN", "kmeans": "k-means", "paws_nn": "PAWS", "classifier": "own classifier"}


@dataclass(frozen=True)
class ResultCell:
    """One number as text, with its uncertainty."""

    number: str
    more: tuple[str, ...] = ()  # "± 0.41" over draws, "[71.20, 73.45]" from test images, "p < 0.001" of a difference
    kind: str = ""  # "gain" or "loss"

    def __str__(self) -> str:
        return " ".join([self.number, *self.more])


@dataclass(frozen=True)
class ResultLine:
    """A line of the table."""

    name: str
    cells: list[ResultCell]


@dataclass(frozen=True)
class MetricsTable:
    """Further metrics: a column for each, a group of lines for each protocol, a line for each kind of features."""

    titles: list[str]
    groups: dict[str, list[ResultLine]]  # by protocol


def short_names(protocols: Sequence[str]) -> dict[str, str]:
    """Names protocols as a table's head needs it: "k-NN 20", "linear", "5 labels a class"; no two of them alike."""
    names = {protocol: _short_name(protocol) for protocol in protocols}
    for name in {each for each in names.values() if list(names.values()).count(each) > 1}:
        alike = [protocol.split("/") for protocol in names if names[protocol] == name]
        for parts in alike:
            own = [part for part in parts if not all(part in others for others in alike)]
            names["/".join(parts)] = ", ".join([name, *own])
    return names


def _short_name(protocol: str) -> str:
    first, *rest = protocol.split("/")
    neighbours = [part.removeprefix("k=") for part in rest if part.startswith("k=") and first == "knn"]
    name = " ".join([PROBES.get(first, first.replace("_", " ")), *neighbours[:1]])
    per_class = [part.split()[0] for part in rest if part.endswith(" per class")]
    labels = [f"{count} label{'s' * (count != '1')} a class" for count in per_class]
    labels += [f"{part} of labels" for part in rest if re.fullmatch(r"[\d.]+ ?%", part)]
    if labels:
        return labels[0] if first == "linear" else f"{name}, {labels[0]}"
    plain = first != "linear" or rest in ([], ["cached-lbfgs-v1"])
    solver = "SGD" if rest[:1] and rest[0].startswith("cached-sgd") else "".join(rest[:1]).replace("-", " ")
    return name if plain else f"{name}, {solver}"


def accuracy_grid(rows: Sequence[Row], labels: Tensor | None = None) -> tuple[list[str], list[ResultLine]]:
    """Returns protocols, and the lines below them: top-1 in per cent of the test images.

    "–" means not measured. Chance uses no features, so that its numbers are in every column. For imbalanced classes the
    means over classes follow. With the ``labels`` of the test images, int64 [N], differences have the p of a paired
    test.
    """
    measured = [row for row in rows if row.features != "chance"]
    protocols = list(dict.fromkeys(row.protocol for row in measured))
    found = {(row.features, row.protocol): row for row in measured}
    lines = [ResultLine(name, [_cell(found.get((name, p))) for p in protocols]) for name in feature_kinds(measured)]
    for name, title in GAINS.items():
        if {"pretrained", name} <= {row.features for row in measured}:
            gains = [format_gain(found.get(("pretrained", p)), found.get((name, p)), labels) for p in protocols]
            lines.insert([line.name for line in lines].index(name) + 1, ResultLine(title, gains))
    chance = [row for row in rows if row.features == "chance"]
    lines += [ResultLine(CHANCE.get(row.protocol, row.protocol), [_cell(row)] * len(protocols)) for row in chance]
    for name in feature_kinds(measured):
        lines += _per_class(name, [found.get((name, p)) for p in protocols])
    for row in chance:
        lines += _per_class(CHANCE.get(row.protocol, row.protocol), [row] * len(protocols))
    return protocols, lines


def other_metrics(rows: Sequence[Row], usual: bool) -> MetricsTable:
    """Returns the other metrics; ``usual``: those that most papers give, otherwise all others, with dozens of them."""
    chosen = [
        name for row in rows for name in row.metrics if (name in DEFAULT_METRICS) == usual and name != MEAN_PER_CLASS
    ]
    chosen.sort(key=lambda name: DEFAULT_METRICS.index(name) if name in DEFAULT_METRICS else 0)
    metrics = list(dict.fromkeys(chosen))
    measured = [row for row in rows if set(row.metrics) & set(metrics)]
    groups: dict[str, list[ResultLine]] = {}
    kinds = feature_kinds(measured)
    for row in sorted(measured, key=lambda row: kinds.index(row.features)):
        values = [row.metrics.get(metric) for metric in metrics]
        cells = [ResultCell(NOTHING if value is None else f"{value:.4g}") for value in values]
        groups.setdefault(row.protocol, []).append(ResultLine(row.features, cells))
    return MetricsTable([_metric(metric) for metric in metrics], groups)


def accuracy_table(rows: Sequence[Row], labels: Tensor | None = None) -> str:
    """Formats top-1 in per cent as a markdown table, with deviations over draws and 95 % intervals if there are any."""
    protocols, lines = accuracy_grid(rows, labels)
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


def format_gain(ours: Row | None, other: Row | None, labels: Tensor | None) -> ResultCell:
    """Formats the difference of two rows with its sign, the p of the paired test where there is one, and its kind."""
    if ours is None or other is None:
        return ResultCell(NOTHING)
    points, p = ours.top1 - other.top1, paired_p(ours, other, labels)
    sure = points != 0 and (p is None or p < SIGNIFICANT)
    kind = ("gain" if points > 0 else "loss") if sure else ""
    return ResultCell(format_signed(points), () if p is None else (_format_p(p),), kind)


def paired_p(ours: Row, other: Row, labels: Tensor | None) -> float | None:
    """Returns the p of no difference: over the same draws of labels, else McNemar's of the same test images."""
    if len(ours.draws) > 1 and len(ours.draws) == len(other.draws):
        return paired_draws_test(ours.draws, other.draws)
    if labels is None or ours.predictions is None or other.predictions is None or ours.draws or other.draws:
        return None
    a, b = (each.predictions.cpu() == labels.cpu() for each in (ours, other) if each.predictions is not None)
    return mcnemar_test(int((a & ~b).sum()), int((b & ~a).sum()))


def _format_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"

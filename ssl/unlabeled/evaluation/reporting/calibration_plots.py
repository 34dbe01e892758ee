"""Plots the calibration of a probe's probabilities, and shows test images with the highest and lowest confidence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unlabeled.core.escaping import in_markdown
from unlabeled.evaluation.reporting.gallery import ImagesOf, NameOf, said_of, short_name
from unlabeled.evaluation.uncertainty.calibration import BINS, ece
from unlabeled.evaluation.uncertainty.selective import risk_coverage
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.parts import joined
from unlabeled.pages.plots import GRID, INK, new_figure, style_axes
from unlabeled.pages.section import Section, Tile, plot_section, save_columns, tiles_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 8  # images of each kind


class ReliabilityBin(NamedTuple):
    """Test images whose largest probability lies in one interval."""

    confidence: float  # mean of that probability
    accuracy: float
    share: float  # of all test images


def reliability(log_probabilities: Tensor, labels: Tensor, bins: int = BINS) -> list[ReliabilityBin]:
    """Returns confidence and accuracy per interval (low, high] of the largest probability, ascending, no empty ones.

    :func:`unlabeled.evaluation.uncertainty.calibration.ece` is the sum of share · |accuracy − confidence|.

    Args:
        log_probabilities: [N, C], on the CPU.
        labels: int64 [N].
    """
    confidence, predicted = log_probabilities.double().exp().max(1)
    right = (predicted == labels).double()
    which = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
    found = []
    for number in torch.unique(which).tolist():
        inside = which == number
        found.append(
            ReliabilityBin(float(confidence[inside].mean()), float(right[inside].mean()), float(inside.double().mean()))
        )
    return found


def calibration_section(log_probabilities: Tensor, labels: Tensor, protocol: str, folder: Path) -> Section:
    """Plots reliability diagram and risk–coverage curve, written to ``folder``/calibration.png."""
    log_probabilities, labels = log_probabilities.cpu(), labels.cpu()
    bins = reliability(log_probabilities, labels)
    confidence, predicted = log_probabilities.double().max(1)
    coverage, risk = risk_coverage(predicted != labels, -confidence)
    error = ece(log_probabilities, labels)
    words = (
        f"Below the diagonal the probe is overconfident: expected calibration error {error:.3f} in {BINS} "
        f"bins. Right: the error if only the surest images are answered; area {float(risk.mean()):.3f}. {protocol}, "
        "probabilities as they came."
    )
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2)
    _draw_reliability(left, bins)
    _draw_risk(right, coverage, risk)
    return plot_section(figure, folder, "calibration", "Reliability and risk", words)


def certainty_section(
    predictions: Tensor,
    log_probabilities: Tensor,
    labels: Tensor,
    ids: Tensor,
    classes: Sequence[str],
    protocol: str,
    image: ImagesOf,
    folder: Path,
    name: NameOf = "{} {}".format,
) -> Section:
    """Shows the eight surest images, surest mistakes and least sure images, also in ``folder``/certain.png.

    All of N test images: predictions int64 [N], log_probabilities [N, C], labels and ids int64 [N].
    """
    confidence = log_probabilities.cpu().double().exp().amax(1)
    order = confidence.argsort(descending=True, stable=True)
    wrong = (predictions != labels).cpu()[order]
    kinds = {"surest": order[:SHOWN], "surest mistakes": order[wrong][:SHOWN], "least sure": order.flip(0)[:SHOWN]}
    html, markdown, pictures = [], [], {}
    for title, rows in kinds.items():
        tiles = _tiles(rows, predictions, confidence, labels, ids, classes, image, name) if len(rows) else []
        html.append(tiles_html(title.capitalize(), tiles))
        markdown.append(f"- {title}: {in_markdown('; '.join(', '.join(each.lines) for each in tiles) or 'none')}")
        pictures[title] = [each.pixels for each in tiles]
    _save(pictures, folder / "certain.png")
    words = (
        f"By the largest probability of {protocol}; the least sure ones are the best to label next. Below each picture "
        "stands its true class."
    )
    text = "\n".join(["![Most and least certain test images](certain.png)", "", *markdown])
    return Section("Most and least certain test images", words, joined(*html), text, wide=True)


def _tiles(
    rows: Tensor,
    predictions: Tensor,
    confidence: Tensor,
    labels: Tensor,
    ids: Tensor,
    classes: Sequence[str],
    image: ImagesOf,
    name: NameOf,
) -> list[Tile]:
    chosen = rows.tolist()
    pixels = image("test", ids[chosen].tolist()).cpu()
    return [
        Tile(
            each,
            [
                said_of(classes[int(labels[row])], classes[int(predictions[row])]),
                f"{float(confidence[row]):.0%} · {short_name(name('test', int(ids[row])))}",
            ],
            int(predictions[row]) == int(labels[row]),
        )
        for row, each in zip(chosen, pixels, strict=True)
    ]


def _save(kinds: dict[str, list[Tensor]], path: Path) -> None:
    """Saves each kind as a row: columns are numbered, and missing images are white."""
    rows = [images for images in kinds.values() if images]
    white = torch.ones_like(rows[0][0])
    save_columns({str(n + 1): [row[n] if n < len(row) else white for row in rows] for n in range(len(rows[0]))}, path)


def _draw_reliability(axes: "Axes", bins: Sequence[ReliabilityBin]) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    heights, places = [each.share for each in bins], [each.confidence for each in bins]
    axes.bar(places, heights, width=0.6 / BINS, color=GRID)
    axes.plot(places, [each.accuracy for each in bins], color=PALETTE[0], marker="o", markersize=4, linewidth=1.2)
    style_axes(axes, "accuracy")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_xlabel("confidence (bars: share of images)", color=INK, fontsize=9)


def _draw_risk(axes: "Axes", coverage: Tensor, risk: Tensor) -> None:
    kept = torch.linspace(0, len(risk) - 1, min(len(risk), 400)).round().long()  # points that a plot can show
    axes.plot(100 * coverage[kept], 100 * risk[kept], color=PALETTE[3], linewidth=1.2)
    style_axes(axes, "error in %")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images answered, %", color=INK, fontsize=9)

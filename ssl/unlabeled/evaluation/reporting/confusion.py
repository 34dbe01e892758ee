"""Shows which classes a probe confuses: a matrix of few classes, a list of the worst pairs of many."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unlabeled.core.escaping import in_table
from unlabeled.evaluation.reporting.templates import report_macros
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.plots import INK, new_figure, plain_text
from unlabeled.pages.section import Section, plot_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 20  # most classes of a readable matrix
MOST_BESIDE = 12  # most classes of a matrix readable on half a screen
PAIRS = 20
STRONGEST = 0.6  # opacity of a full cell: a darker one would leave its number a contrast below 4.5 : 1


class ConfusedClasses(NamedTuple):
    """Test images of one class that were classified as another."""

    label: int
    predicted: int
    images: int
    share: float  # of the test images of ``label``


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns counts int64 [C, C]: the row is the true class, the column the predicted one."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, -1)


def most_confused(predictions: Tensor, labels: Tensor, most: int = PAIRS) -> list[ConfusedClasses]:
    """Returns the pairs with most images, of equals the lower classes first, without making the whole matrix."""
    wrong = predictions != labels
    pairs, counts = torch.unique(torch.stack([labels[wrong], predictions[wrong]], 1), dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most]
    totals = labels.bincount()
    return [
        ConfusedClasses(label, predicted, count, count / int(totals[label]))
        for (label, predicted), count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]


def confusion_section(
    predictions: Tensor, labels: Tensor, classes: Sequence[str], protocol: str, folder: Path
) -> Section:
    """Draws up to 20 classes as a picture in ``folder``/confusion.png; else lists the most confused pairs."""
    title, predictions, labels = "Confusion matrix", predictions.cpu(), labels.cpu()
    if len(classes) <= MOST_CLASSES:
        words = f"Per cent of the test images of each true class (a row) by predicted class (a column); {protocol}."
        counts = confusion_matrix(predictions, labels, len(classes))
        wide = len(classes) > MOST_BESIDE
        return plot_section(_matrix(counts, classes), folder, "confusion", title, words, wide)
    words = f"The most frequent confusions of {len(classes):,} classes; {protocol}."
    pairs = most_confused(predictions, labels)
    return Section("Most confused classes", words, _html(pairs, classes), _markdown(pairs, classes))


def _matrix(counts: Tensor, classes: Sequence[str]) -> "Figure":
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = max(3.6, 0.36 * len(classes)) + 0.9
    figure = new_figure(side, side + 0.3)
    axes, blue = figure.add_subplot(), to_rgb(PALETTE[0])
    from_nothing = LinearSegmentedColormap.from_list("from nothing", [(*blue, 0.0), (*blue, STRONGEST)])
    # cells, not an image, so that the page's background shows where a share is small
    axes.pcolormesh(shares.numpy(), cmap=from_nothing, vmin=0.0, vmax=1.0, linewidth=0)
    _name_axes(axes, classes)
    for row, column in (counts > 0).nonzero().tolist():
        share = float(shares[row, column])
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=INK, fontsize=8)
    return figure


def _name_axes(axes: "Axes", classes: Sequence[str]) -> None:
    names, places = [plain_text(name, 14) for name in classes], [n + 0.5 for n in range(len(classes))]
    short = max(map(len, names)) <= 2
    axes.set_xticks(places, names, rotation=0 if short else 90, color=INK)
    axes.set_yticks(places, names, color=INK)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)


def _html(pairs: Sequence[ConfusedClasses], classes: Sequence[str]) -> str:
    rows = [(classes[p.label], classes[p.predicted], f"{p.images:,}", f"{p.share:.0%}") for p in pairs]
    return str(report_macros().confused(rows))


def _markdown(pairs: Sequence[ConfusedClasses], classes: Sequence[str]) -> str:
    named = [in_table(name) for name in classes]
    rows = [f"| {named[p.label]} | {named[p.predicted]} | {p.images:,} | {p.share:.0%} |" for p in pairs]
    return "\n".join(["| true | predicted | images | of the class |", "| --- | --- | ---: | ---: |", *rows])

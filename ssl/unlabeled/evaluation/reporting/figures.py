"""Plots of a run, drawn without a display: loss over time, map of the test features, accuracy by number of labels."""

import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_utf8
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.pages.palette import PALETTE, class_colour
from unlabeled.pages.plots import GRID, INK, new_figure, plain_text, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEW = re.compile(r"/[\d.]+( per class|%)")  # what protocols of few labels have in them
MOST_POINTS = 1000  # t-SNE takes some seconds for them, more points hide each other, and each has a thumbnail
FEWEST_FOR_TSNE = 50  # its perplexity of 30 needs more neighbours
FEWEST_FOR_UMAP = 1000  # compiling it takes 10 to 15 s in every process; t-SNE of fewer points takes 2
MOST_IN_LEGEND = 20  # classes
LEGEND_WIDTH = 62  # letters of a line of it


class FeatureMap(NamedTuple):
    """A map of at most 1,000 features: by which method, of which rows, and where each is."""

    method: str
    rows: Tensor  # int64 [n]
    positions: Tensor  # float32 [n, 2]

    @property
    def title(self) -> str:
        return f"{self.method} of {len(self.rows):,} test features"


def place_features(x: Tensor, seed: int = 0) -> FeatureMap:
    """Places test features [N, D] on a map.

    UMAP (McInnes et al. 2018) where umap-learn is installed, else t-SNE (van der Maaten and Hinton 2008), of at most
    1,000 random rows, scaled to length 1 so that distance means cosine; t-SNE of fewer than 1,000; PCA of fewer than
    50, and of features that are all equal. The same input and ``seed`` give the same map.
    """
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOST_POINTS]
    method, position = project(normalize(x[rows.to(x.device)].float().cpu()), seed)
    return FeatureMap(method, rows, torch.as_tensor(position).float())


def draw_feature_map(placed: FeatureMap, labels: Tensor, classes: Sequence[str]) -> "Figure":
    """Draws the map, coloured by class; its title names the method. Names stand in a legend up to 20 classes.

    ``labels``: int64 [N], of all features.
    """
    labels, position = labels.cpu()[placed.rows], placed.positions
    figure = new_figure(5.0)
    axes = figure.add_subplot()
    # in random order: drawn class by class, the last class would lie on top and look purer than it is
    colours = [class_colour(label) for label in labels.tolist()]
    axes.scatter(position[:, 0], position[:, 1], s=6 if len(labels) > 200 else 20, c=colours, linewidths=0)
    axes.set_title(placed.title, loc="left", color=INK, fontsize=11)
    axes.set_xticks([])  # the axes of a map have no unit
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)
    if len(classes) <= MOST_IN_LEGEND:
        _legend(figure, classes)
    return figure


def loss_curve(metrics: Path, collapsed_at: float | None = None) -> "Figure":
    """Plots training loss and, where measured, online k-NN accuracy by epoch from a metrics.jsonl.

    ``collapsed_at``: the loss of a network whose embeddings are all equal, drawn as a dashed line.
    """
    lines = read_metrics(metrics)
    losses, accuracies = _series(lines, "train/loss"), _series(lines, "probe/knn_top1")
    panels = 2 if accuracies else 1
    figure = new_figure(2.2 * panels)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    _line(axes[0], losses, "training loss", PALETTE[0], marker="")
    if collapsed_at is not None:
        _mark_collapse(axes[0], collapsed_at)
    if accuracies:
        _line(axes[1], accuracies, "online k-NN, top-1 in %", PALETTE[2], marker="o")
    axes[-1].set_xlabel("epoch" if _has_epochs(lines) else "step", color=INK)
    return figure


def label_curve(rows: Sequence[Row]) -> "Figure | None":
    """Plots top-1 by the number of labelled images, a line per kind of features; None where few were not tried.

    Bars go from the worst to the best draw. If the linear probe was run on all labels, it gives the last point.
    """
    few = [row for row in rows if _FEW.search(row.protocol) and row.n_train]
    if len({row.n_train for row in few}) < 2:
        return None
    linear = [row for row in rows if row.protocol.startswith("linear/cached-lbfgs") and row not in few and row.n_train]
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(row.features for row in few)):
        points = sorted((row for row in [*few, *linear] if row.features == name), key=lambda row: row.n_train)
        low = [row.top1 - min(row.draws or [row.top1]) for row in points]
        high = [max(row.draws or [row.top1]) - row.top1 for row in points]
        places, heights = [row.n_train for row in points], [row.top1 for row in points]
        colour = PALETTE[number % len(PALETTE)]
        axes.errorbar(places, heights, [low, high], color=colour, marker="o", markersize=4, linewidth=1.2, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("labelled images", color=INK)
    style_axes(axes, "top-1 of the test images in %")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _mark_collapse(axes: "Axes", loss: float) -> None:
    axes.axhline(loss, color=PALETTE[3], linestyle="--", linewidth=1)
    axes.annotate(
        f"of a collapsed run: {loss:.3g}",
        (1.0, loss),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color=PALETTE[3],
    )
    axes.margins(y=0.12)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics.jsonl, merged by step, in order of steps; a later line wins.

    A resumed run writes the steps after its checkpoint again, and a kill may leave a partial line: lines that are not
    JSON objects with a step are left out.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in read_utf8(path, "replace").splitlines():
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            steps.setdefault(entry["step"], {}).update(entry)
    return [steps[step] for step in sorted(steps)]


def project(x: Tensor, seed: int) -> tuple[str, Any]:
    """Projects rows [N, D] onto a plane [N, 2] and names the method: UMAP, t-SNE or PCA, see :func:`place_features`."""
    centred = x - x.mean(dim=0)
    # t-SNE divides by the spread of two principal components, which is 0 for a collapsed network
    if len(x) < FEWEST_FOR_TSNE or x.shape[1] < 2 or float(centred.abs().max()) < 1e-6:
        return "PCA", _principal_plane(centred)
    if len(x) >= FEWEST_FOR_UMAP and find_spec("umap"):
        return "UMAP", _umap(x, seed)
    from sklearn.manifold import TSNE

    return "t-SNE", TSNE(init="pca", random_state=seed, perplexity=30.0).fit_transform(x.numpy())


def _umap(x: Tensor, seed: int) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that a seed disables threads, and about TensorFlow
        from umap import UMAP

        return UMAP(random_state=seed, n_jobs=1).fit_transform(x.numpy())


def _principal_plane(centred: Tensor) -> Any:
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    plane = centred @ direction.T
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1])).numpy()


def _legend(figure: "Figure", classes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    names = [plain_text(name) for name in classes]
    colours = [class_colour(i) for i in range(len(classes))]
    dots = [Line2D([], [], marker="o", markersize=5, linestyle="", color=colour) for colour in colours]
    columns = max(1, LEGEND_WIDTH // (max(map(len, names), default=0) + 5))
    figure.legend(
        dots,
        names,
        loc="outside lower left",
        ncols=min(columns, len(names)),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.0,
        fontsize=9,
        labelcolor=INK,
    )


def _has_epochs(lines: list[dict[str, Any]]) -> bool:
    return bool(lines) and all("epoch" in line for line in lines)


def _series(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    place = "epoch" if _has_epochs(lines) else "step"
    # a loss that was not finite may be null, text, or the NaN that json.loads accepts
    return [
        (line[place], line[key])
        for line in lines
        if isinstance(line.get(key), int | float) and math.isfinite(line[key])
    ]


def _line(axes: "Axes", points: list[tuple[float, float]], name: str, colour: str, marker: str) -> None:
    axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=1.2, marker=marker, markersize=4)
    style_axes(axes, name)

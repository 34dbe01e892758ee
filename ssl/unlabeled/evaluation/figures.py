"""Two pictures of a run: the loss over time, and a map of the test features. Drawn without a display."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's eight colours, safe for colour-blind readers, and grey and wine to make ten
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#7F7F7F", "#882255"]
MOST_POINTS = 2000  # t-SNE takes about 10 s for them on two cores, and more points hide each other
FEWEST_FOR_TSNE = 50  # its perplexity of 30 needs more neighbours than that leaves
INK, GRID = "#333333", "#DDDDDD"


def feature_map(x: Tensor, labels: Tensor, classes: Sequence[str], path: Path, seed: int = 0) -> None:
    """Writes a 2-D map of test features [N, D], coloured by class, to ``path``.

    t-SNE of at most 2,000 random rows, scaled to length 1 so that distance means cosine; PCA of fewer than 50, and
    of features that are all equal. Names stand in a legend up to 20 classes. The same input and ``seed``
    give the same map.
    """
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOST_POINTS]
    x, labels = normalize(x[rows].float().cpu()), labels[rows].cpu()
    method, position = _embed(x, seed)
    figure = _figure(8.0, 6.0)
    axes = figure.add_subplot()
    # all at once in random order: drawn class by class, the last would lie on top and look purer than it is
    colours = [_colour(label, len(classes)) for label in labels.tolist()]
    axes.scatter(position[:, 0], position[:, 1], s=12 if len(x) > 200 else 30, c=colours, linewidths=0)
    axes.set_title(f"{method} of {len(x):,} test features, coloured by class", loc="left", color=INK)
    axes.set_xticks([])  # the axes of such a map mean nothing
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)
    if len(classes) <= 20:
        _legend(axes, classes)
    figure.savefig(path)


def loss_curve(metrics: Path, path: Path, collapsed_at: float | None = None) -> None:
    """Draws training loss and, where it was measured, online k-NN accuracy by epoch from a metrics.jsonl to ``path``.

    ``collapsed_at``: the loss of a network whose embeddings are all equal, drawn as a dashed line.
    """
    lines = read_metrics(metrics)
    losses, accuracies = _series(lines, "train/loss"), _series(lines, "probe/knn_top1")
    panels = 2 if accuracies else 1
    figure = _figure(8.0, 3.0 * panels)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    _line(axes[0], losses, "training loss", PALETTE[0], marker="")
    if collapsed_at is not None:
        axes[0].axhline(collapsed_at, color=PALETTE[3], linestyle="--", linewidth=1)
        axes[0].annotate(
            f"collapsed: {collapsed_at:.3g}",
            (1.0, collapsed_at),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            color=PALETTE[3],
        )
        axes[0].margins(y=0.12)
    if accuracies:
        _line(axes[1], accuracies, "online k-NN, top-1 in %", PALETTE[2], marker="o")
    axes[-1].set_xlabel("epoch" if _has_epochs(lines) else "step", color=INK)
    figure.savefig(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl merged by step, in order of steps; a later line wins.

    A resumed run writes the steps after its checkpoint again, and a kill tears the line being written: lines that are
    not JSON objects with a step are left out.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            steps.setdefault(entry["step"], {}).update(entry)
    return [steps[step] for step in sorted(steps)]


def _embed(x: Tensor, seed: int) -> tuple[str, Any]:
    centred = x - x.mean(dim=0)
    # t-SNE starts at two principal components and divides by their spread, which a collapsed network has not
    if len(x) < FEWEST_FOR_TSNE or x.shape[1] < 2 or float(centred.abs().max()) < 1e-6:
        direction = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        plane = centred @ direction.T
        return "PCA", torch.nn.functional.pad(plane, (0, 2 - plane.shape[1])).numpy()
    from sklearn.manifold import TSNE

    return "t-SNE", TSNE(init="pca", random_state=seed, perplexity=30.0).fit_transform(x.numpy())


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and picks a display

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colour(label: int, num_classes: int) -> Any:
    if num_classes <= len(PALETTE):
        return PALETTE[label % len(PALETTE)]
    import matplotlib

    return matplotlib.colormaps["turbo"]((label + 0.5) / num_classes)


def _legend(axes: "Axes", classes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], marker="o", linestyle="", color=_colour(i, len(classes))) for i in range(len(classes))]
    axes.legend(dots, classes, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handletextpad=0.3)


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
    axes.set_title(name, loc="left", color=INK, fontsize=11)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)

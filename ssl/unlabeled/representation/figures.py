"""Draws the plots of an analysis, without a display."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlabeled.pages.palette import PALETTE
from unlabeled.pages.plots import GRID, INK, WIDTH, new_figure, plain_text, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TICKS = 14  # names of layers along an axis
LONGEST = 12  # letters of a layer's name: its end is what differs
MOST_VALUES = 9  # largest number of layers for which the cells show values
PANEL = 3.7  # inches, width of one matrix


def spectrum_plot(spectra: Mapping[str, Tensor], spaces: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Plots the covariance's eigenvalues over their ranks, relative to the largest, and the fitted lines of α-ReQ."""
    figure = new_figure(3.4)
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(spectra.items()):
        if not values[0] > 0:  # all features are equal: there is no curve
            continue
        values = values[values > 1e-12 * values[0]]  # smaller ones are rounding errors
        relative = (values / values[0]).tolist()
        axes.loglog(range(1, len(values) + 1), relative, color=PALETTE[number], label=name)
        if spaces[name]["alpha"] is not None:
            _draw_fit(axes, relative, spaces[name])
    style_axes(axes, "Eigenvalues of the covariance")
    axes.set_xlabel("rank", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    return figure


def _draw_fit(axes: "Axes", relative: Sequence[float], space: Mapping[str, Any]) -> None:
    first, last = space["alpha_window"]
    if len(relative) < first:  # too few eigenvalues above the rounding errors: there is nothing to draw through
        return
    log_ranks = torch.arange(first, min(last, len(relative)) + 1, dtype=torch.float64).log()
    weights = (-log_ranks).softmax(0)  # weights 1 / rank, as in the fit
    offset = weights @ (
        torch.tensor(relative, dtype=torch.float64)[first - 1 : last].log() + space["alpha"] * log_ranks
    )
    line = (offset - space["alpha"] * log_ranks).exp()
    label = f"α = {space['alpha']:.2f}, R² = {space['alpha_r_squared']:.3f}"
    axes.loglog(log_ranks.exp().tolist(), line.tolist(), "--", color=INK, linewidth=1.2)
    axes.plot([], [], " ", label=label)


def invariance_plot(spaces: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Plots a bar for each augmentation and space."""
    names = list(next(iter(spaces.values()))["invariance"])
    figure = new_figure(0.8 + 0.24 * len(names) * (len(spaces) + 1))
    axes = figure.add_subplot()
    for number, (name, space) in enumerate(spaces.items()):
        places = [row * (len(spaces) + 1) + number for row in range(len(names))]
        values = [space["invariance"][key] for key in names]
        bars = axes.barh(places, values, 0.85, color=PALETTE[number], label=name)
        axes.bar_label(bars, fmt="%.2f", padding=3, color=INK, fontsize=8)
    axes.set_yticks([row * (len(spaces) + 1) + (len(spaces) - 1) / 2 for row in range(len(names))], names)
    axes.invert_yaxis()
    style_axes(axes, "Invariance to single augmentations")
    axes.grid(visible=False, axis="y")
    axes.axvline(1, color=GRID, linewidth=0.8, zorder=0)
    axes.set_xlim(min(0.0, *(value for space in spaces.values() for value in space["invariance"].values())), 1.12)
    axes.set_xlabel("0: as different as two images, 1: invariant", color=INK)
    if len(spaces) > 1:
        figure.legend(loc="outside upper right", ncols=len(spaces), frameon=False, labelcolor=INK)
    return figure


def distance_plot(distances: Tensor, even: float) -> "Figure":
    """Plots a dot for each head of each block; [blocks, heads], pixels."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.2)
    axes = figure.add_subplot()
    for block, heads in enumerate(distances.tolist(), 1):
        axes.plot([block] * len(heads), heads, "o", color=PALETTE[0], markersize=5, alpha=0.8, markeredgewidth=0)
    axes.axhline(even, color=PALETTE[3], linestyle="--", linewidth=1)
    axes.annotate("even attention", (1, even), (0, 3), textcoords="offset points", color=PALETTE[3], fontsize=8)
    style_axes(axes, "Mean attention distance of each head, pixels")
    axes.set_ylim(0, max(even, float(distances.max())) * 1.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block", color=INK)
    return figure


def matrices(panels: Sequence[tuple[Tensor, tuple[str, Sequence[str]], tuple[str, Sequence[str]]]]) -> "Figure":
    """Plots the CKA of layers: one matrix, or several side by side with one scale.

    Args:
        panels: matrices [rows, columns], each with its title, the layers of its rows and those of its columns.
    """
    figure = new_figure(PANEL + 0.5, max(WIDTH, PANEL * len(panels) + 1.2))
    every = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.06})[0]
    for axes, (matrix, rows, columns) in zip(every, panels, strict=True):
        _write_values(axes, matrix)
        image = axes.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="magma", origin="lower", aspect="auto")
        _ticks(axes.yaxis, *rows)
        _ticks(axes.xaxis, *columns)
        axes.tick_params(colors=INK, labelsize=7)
        axes.tick_params(axis="x", rotation=90)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(every), label="CKA", fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _write_values(axes: "Axes", matrix: Tensor) -> None:
    """Writes the values into the cells, if there is room."""
    if max(matrix.shape) > MOST_VALUES:
        return
    for row, values in enumerate(matrix.tolist()):
        for column, value in enumerate(values):
            colour = "#010101" if value > 0.6 else "white"  # a page would replace plain black in the dark
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)


def _ticks(axis: Any, title: str, names: Sequence[str]) -> None:
    step = -(-len(names) // MOST_TICKS)
    ends = [name if len(name) <= LONGEST else "…" + name[1 - LONGEST :] for name in names[::step]]
    axis.set_ticks(range(0, len(names), step), ends)
    axis.set_label_text(plain_text(title, 44), color=INK, fontsize=9)

"""Compares measured with configured values: a table of each group of views, with a small plot in every line."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unlabeled.pages.template import safe
from unlabeled.views.preview.draws import FLAGGED, GroupDraws, MeasuredRate, Quantity

BINS, AROUND, MOST_BINS = 24, 2, 60  # bins in the configured range, on each side of it, at most
WIDTH, HEIGHT, BELOW = 220, 30, 12  # of a plot, and height of the text below it, pixels
INK, PALE, LINE = "drawn", "range", "expected"  # classes of the page: measured, configured range, configured density


def group_table(group: GroupDraws) -> dict[str, Any]:
    """Returns what the template shows of the measurements of one group: its title and lines."""
    first, last = group.numbers[0] + 1, group.numbers[-1] + 1
    views = f"View {first}" if first == last else f"Views {first} to {last}"
    lines = [_rate(each) if isinstance(each, MeasuredRate) else _quantity(each) for each in group.measured]
    return {"title": f"{views}, {group.size} pixels", "lines": lines}


def rates_verdict(groups: Sequence[GroupDraws]) -> str:
    """Returns one line on whether every operation applies as often as it should."""
    known, off = [rate for rate in _rates(groups) if rate.configured is not None], flagged_rates(groups)
    if not off:
        return f"All {len(known)} rates lie within {FLAGGED:g} standard errors of what is configured."
    what = f"{len(off)} of {len(known)} rates lie more than {FLAGGED:g} standard errors from what is configured"
    return f"{what}: {', '.join(off)}"


def flagged_rates(groups: Sequence[GroupDraws]) -> list[str]:
    """Returns the operations that apply more or less often than they should."""
    return [rate.name for rate in _rates(groups) if rate.configured is not None and rate.flagged]


def _rates(groups: Sequence[GroupDraws]) -> list[MeasuredRate]:
    return [each for group in groups for each in group.measured if isinstance(each, MeasuredRate)]


def _rate(rate: MeasuredRate) -> dict[str, Any]:
    measured, configured = f"{rate.measured:.3f}", "–" if rate.configured is None else f"{rate.configured:g}"
    if rate.flagged:
        measured = f"{measured}, {rate.errors:.1f} standard errors off"
    return _line(rate.name, configured, measured, len(rate.drawn), _bar(rate)) | {"off": rate.flagged}


def _quantity(quantity: Quantity) -> dict[str, Any]:
    low, high, mean = (
        float(x) for x in (quantity.values.min(), quantity.values.max(), quantity.values.double().mean())
    )
    configured = "–" if quantity.configured is None else _span(*quantity.configured)
    return _line(
        quantity.name, configured, f"{_span(low, high)}, mean {mean:.3g}", len(quantity.values), _histogram(quantity)
    )


def _line(name: str, configured: str, measured: str, count: int, plot: str) -> dict[str, Any]:
    line = {"name": name, "configured": configured, "measured": measured, "count": f"{count:,}", "off": False}
    return line | {"plot": safe(plot)}


def _span(low: float, high: float) -> str:
    low, high = low + 0.0, high + 0.0  # no −0
    return (f"{low:.3g}" if low == high else f"{low:.3g} … {high:.3g}").replace("-", "−")


def _bar(rate: MeasuredRate) -> str:
    """Draws a share from 0 to 1 as a bar, with the configured one as a line."""
    bar = _rectangle(0, 3, WIDTH, 6, PALE) + _rectangle(0, 3, WIDTH * rate.measured, 6, INK)
    if rate.configured is not None:
        x = min(max(WIDTH * rate.configured, 1), WIDTH - 1)
        bar += f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="12" class="{LINE}" stroke-width="2"/>'
    return f'<svg width="{WIDTH}" height="12" aria-hidden="true">{bar}</svg>'


def _histogram(quantity: Quantity) -> str:
    """Draws the shares of the draws in bins, with the configured range behind them and its density as a line."""
    edges = bin_edges(quantity)
    counts = torch.histogram(quantity.values.double().cpu(), edges).hist / len(quantity.values)
    expected = expected_shares(quantity, edges)
    tallest = max(float(counts.max()), float(expected.max()))
    step = WIDTH / len(counts)
    heights = [HEIGHT * count / tallest for count in counts.tolist()]
    bars = "".join(_rectangle(i * step, HEIGHT - height, step - 1, height, INK) for i, height in enumerate(heights))
    levels = [HEIGHT * (1 - share / tallest) for share in expected.tolist()]
    points = " ".join(f"{i * step:.1f},{y:.1f} {(i + 1) * step:.1f},{y:.1f}" for i, y in enumerate(levels))
    behind, labels = _range(quantity, edges)
    line = f'<polyline points="{points}" class="{LINE}" stroke-width="1.5"/>' if expected.any() else ""
    return f'<svg width="{WIDTH}" height="{HEIGHT + BELOW}" aria-hidden="true">{behind}{bars}{line}{labels}</svg>'


def bin_edges(quantity: Quantity) -> Tensor:
    """Returns bin edges, float64: ``BINS`` over the configured range, and as many to each side as the values need."""
    least, most = float(quantity.values.min()), float(quantity.values.max())
    low, high = quantity.configured or (least, most)
    width = (high - low) / BINS
    if width > 0:
        before, after = (max(AROUND, math.floor(over / width) + 1) for over in (low - least, most - high))
        if before + BINS + after <= MOST_BINS:
            return low + width * torch.arange(-before, BINS + after + 1, dtype=torch.float64)
    low, high = min(least, low), max(most, high)
    margin = 0.05 * (high - low) or 0.5 * max(abs(high), 1.0)
    return torch.linspace(low - margin, high + margin, BINS + 1, dtype=torch.float64)


def expected_shares(quantity: Quantity, edges: Tensor) -> Tensor:
    """Returns the expected share of draws in each bin; zeros if unknown, or if only one value is possible."""
    if quantity.configured is None or quantity.configured[0] == quantity.configured[1]:
        return torch.zeros(len(edges) - 1)
    low, high = quantity.configured
    inside = edges.clamp(low, high)
    if quantity.logarithmic:
        low, high, inside = math.log(low), math.log(high), inside.log()
    return ((inside - low) / (high - low)).diff()


def _range(quantity: Quantity, edges: Tensor) -> tuple[str, str]:
    """Draws the configured range as a pale background, and its ends (else the measured ones) in small digits."""
    ends = quantity.configured or (float(quantity.values.min()), float(quantity.values.max()))
    first, width = float(edges[0]), float(edges[-1] - edges[0])
    left, right = (WIDTH * (end - first) / width for end in ends)
    ground = _rectangle(left, 0, right - left, HEIGHT, PALE) if quantity.configured else ""
    texts = [(left, "start", ends[0]), (right, "end", ends[1])] if ends[0] < ends[1] else [(left, "middle", ends[0])]
    labels = "".join(
        f'<text x="{x:.1f}" y="{HEIGHT + 9}" text-anchor="{side}">{end + 0.0:.3g}</text>' for x, side, end in texts
    )
    return ground, labels


def _rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" class="{kind}"/>'

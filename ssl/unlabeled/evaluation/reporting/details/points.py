"""The map of the test features for the page: a dot for each image, with name, class and thumbnail at the pointer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlabeled.evaluation.reporting.templates import report_macros
from unlabeled.pages.html import json_script, picture_address
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.template import safe

SIDE, ACROSS = 32, 40  # pixels of a thumbnail, and thumbnails in a row of the sheet
WIDTH, EDGE = 1000, 24  # of the drawing, in its own units
MOST_IN_LEGEND = 20  # classes: as many as there are colours
Thumbnails = Callable[[Sequence[int]], Tensor]  # ids of test images → uint8 [n, 3, 32, 32]


@dataclass(frozen=True)
class MapPoints:
    """Points of a map and what is known of each; lists have one entry for each point."""

    positions: Tensor  # float [n, 2]
    labels: Sequence[int]
    names: Sequence[str]
    predicted: Sequence[int] | None = None
    thumbnails: Tensor | None = None  # uint8 [n, 3, 32, 32]


def points_html(points: MapPoints, classes: Sequence[str], label: str) -> str:
    """Returns the map as HTML; ``report.js`` answers the pointer. ``label`` is its text for screen readers."""
    placed, height = _placed(points.positions)
    dots = "".join(
        f'<circle class="c{each % len(PALETTE)}" cx="{x}" cy="{y}" r="5" data-class="{each}"/>'
        for (x, y), each in zip(placed, points.labels, strict=True)
    )
    data = safe(json_script(_about(points, classes), "points"))
    names = classes if len(classes) <= MOST_IN_LEGEND else []
    box = f"0 0 {WIDTH} {height}"
    colours = len(PALETTE)
    return str(report_macros().points(box, label, safe(dots), names, len(classes), colours, _sheet(points), data))


def _placed(positions: Tensor) -> tuple[list[tuple[int, int]], int]:
    """Returns x and y of each point, y downwards, and the height; both axes have one scale."""
    low, extent = positions.amin(0), (positions.amax(0) - positions.amin(0)).clamp(min=1e-9)
    scale = (WIDTH - 2 * EDGE) / float(extent.amax())
    height = round(float(extent[1]) * scale) + 2 * EDGE
    moved = (positions - low) * scale + EDGE + (WIDTH - 2 * EDGE - extent * scale) / 2 * torch.tensor([1.0, 0.0])
    return [(round(x), height - round(y)) for x, y in moved.tolist()], height


def _sheet(points: MapPoints) -> str:
    """Returns the address of one picture with all thumbnails; "" where there are none."""
    if points.thumbnails is None:
        return ""
    missing = -len(points.thumbnails) % ACROSS
    tiles = torch.nn.functional.pad(points.thumbnails, (0, 0, 0, 0, 0, 0, 0, missing))
    rows = tiles.view(-1, ACROSS, 3, SIDE, SIDE).permute(2, 0, 3, 1, 4).reshape(3, -1, ACROSS * SIDE)
    return picture_address(rows, "JPEG")


def _about(points: MapPoints, classes: Sequence[str]) -> Mapping[str, Any]:
    return {
        "classes": list(classes),
        "labels": list(points.labels),
        "names": list(points.names),
        "predicted": None if points.predicted is None else list(points.predicted),
        "side": SIDE,
        "across": ACROSS,
    }

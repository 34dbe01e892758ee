"""Builds the page of a preview: one HTML file with its pictures inside; no other file, script or network access."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.pages.html import html_page, inline_png
from unlabeled.pages.style import COLOURS
from unlabeled.pages.template import macros
from unlabeled.views.operations import ColorJitter, RandomResizedCrop
from unlabeled.views.preview.draws import JITTER, GroupDraws, RecordedStep, operation_title, parameter_columns
from unlabeled.views.preview.tables import flagged_rates, group_table, rates_verdict

NARROW, WIDE = 170, 380  # pixels of a picture on a desktop: narrower, its captions could not be read
MAGNIFIED = 380  # pixels below which an image is shown enlarged, with its pixels as they are
VIEW_COLOURS = 10  # of the palette; those of later views come again

STYLE = (
    COLOURS
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { font: 15px/1.45 system-ui, "Liberation Sans", Arial, sans-serif; color: var(--ink); background: var(--ground);
  margin: 0; }
main { padding: 24px clamp(16px, 2vw, 40px) 48px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 6px; } h3 { font-size: 15px; margin: 0 0 6px; }
p { margin: 4px 0; max-width: 78ch; overflow-wrap: anywhere; } .quiet { color: var(--quiet); }
.images { display: grid; gap: 0 48px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, calc(var(--columns) * NARROWpx)), 1fr)); }
.image { display: grid; gap: 16px; padding: 18px 0; border-bottom: 1px solid var(--line); align-content: start;
  grid-template-columns: repeat(auto-fit, minmax(NARROWpx, 1fr)); max-width: calc(var(--columns) * WIDEpx); }
.image figure { margin: 0; min-width: 0; }
.image b { display: block; border-top: 4px solid; padding: 3px 0 5px; font-size: 14px; line-height: 1.3; }
.image b small { font-weight: 400; white-space: nowrap; }
.tile { position: relative; } .tile img { display: block; width: 100%; }
.pixels { image-rendering: pixelated; }
.tile svg { position: absolute; inset: 0; width: 100%; height: 100%; }
figcaption { font-size: 13px; line-height: 1.4; margin-top: 6px; overflow-wrap: anywhere; }
.groups { display: flex; flex-wrap: wrap; gap: 28px 48px; } .groups > div { min-width: 0; max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
.group th, .group td { padding: 4px 16px 4px 0; font-size: 13px; }
.group td { border-bottom: 1px solid var(--line); vertical-align: middle; white-space: nowrap; }
.group svg { display: block; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.flagged { color: var(--wrong); font-weight: 600; }
.drawn { fill: var(--colour-0); } .range { fill: var(--line); } .expected { stroke: var(--colour-3); fill: none; }
svg text { font-size: 10px; fill: var(--quiet); }
@media (max-width: 760px) {
  main { padding: 16px 16px 40px; } h1 { font-size: 21px; }
  .image { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px 12px; }
  .image figure:first-child { grid-column: 1 / -1; }
}
""".replace("NARROW", str(NARROW)).replace("WIDE", str(WIDE))
)


@dataclass(frozen=True)
class PreviewImage:
    """One view of some images, with the operations that made it."""

    pixels: Tensor  # float [B, 3, h, w] in [0, 1]
    steps: list[RecordedStep]


def page(
    title: str,
    facts: dict[str, str],
    names: Sequence[str],
    images: Sequence[Tensor],
    shown: Sequence[PreviewImage],
    groups: Sequence[GroupDraws],
) -> str:
    """Returns the HTML text.

    Args:
        title: of the page.
        facts: the values at the top of the page, by their titles.
        names: of the images, one or more lines each.
        images: uint8 [3, h, w] each, as decoded.
        shown: their views.
        groups: the measured draws.
    """
    rows = [_row(row, name, images, shown) for row, name in enumerate(names)]
    verdict = {"words": rates_verdict(groups), "off": bool(flagged_rates(groups))}
    template = macros(Path(__file__).with_name("preview.html"))
    body = template.page(title, facts, verdict, rows, 1 + len(shown), [group_table(group) for group in groups])
    return html_page(title, STYLE, body)


def _colour(number: int) -> str:
    return f"var(--colour-{(number - 1) % VIEW_COLOURS})"


def _row(row: int, name: str, images: Sequence[Tensor], shown: Sequence[PreviewImage]) -> dict[str, Any]:
    """Returns what the template shows of one image: itself and its views."""
    boxes = [box for number, view in enumerate(shown, 1) if (box := _box(view, row, _colour(number)))]
    lines = [{"text": line, "nothing": False} for line in name.splitlines()]
    what = f"{name.splitlines()[0]}, as decoded" if name.strip() else "as decoded"
    cells = [_cell("as decoded", "transparent", images[row], what) | {"boxes": boxes, "below": lines}]
    for number, view in enumerate(shown, 1):
        pixels = (view.pixels[row] * 255).round().byte()
        title = f"view {number}"
        cells.append(_cell(title, _colour(number), pixels, f"{title} of {what}") | _captions(view.steps, row))
    return {"what": what, "cells": cells}


def _cell(title: str, colour: str, pixels: Tensor, what: str) -> dict[str, Any]:
    enlarged = pixels.shape[-1] < MAGNIFIED  # else a browser smooths them
    size = f"{pixels.shape[2]} × {pixels.shape[1]}"
    cell = {"title": title, "colour": colour, "size": size, "what": what, "enlarged": enlarged}
    return cell | {"address": inline_png(pixels), "boxes": [], "below": [], "left_out": []}


def _box(view: PreviewImage, row: int, colour: str) -> tuple[str, int, int, int, int] | None:
    """Returns colour, left, top, width and height of a view whose frame is changed by a crop first."""
    for step in view.steps:
        if isinstance(step.operation, RandomResizedCrop):
            top, left, height, width = step.drawn["box"][row].tolist()
            return colour, left, top, width, height
        if step.changed is None:
            break
    return None


def _captions(steps: Sequence[RecordedStep], row: int) -> dict[str, Any]:
    """Returns the operations on an image, one per line, and those that were not applied."""
    done, left_out = [], []
    for step in steps:
        values = {
            name: column[row] for name, column in parameter_columns(step.operation, step.drawn, step.sizes).items()
        }
        if not bool(values.pop("applied", True)):
            left_out.append(operation_title(step.operation))
            continue
        nothing = step.changed is not None and not bool(step.changed[row])
        done.append({"text": caption(step, values, row), "nothing": nothing})
    return {"below": done, "left_out": left_out}


def caption(step: RecordedStep, values: dict[str, Tensor], row: int) -> str:
    """Describes one operation on one image in a line.

    For example ``jitter: hue +0.031 → contrast 1.20 → saturation 0.93 → brightness 1.11``.

    Args:
        step: with the rows of all images.
        values: the columns of this image.
        row: the row of this image.
    """
    if isinstance(step.operation, RandomResizedCrop):
        top, left, height, width = step.drawn["box"][row].tolist()
        parts = [f"crop {width} × {height}", f"at {left}, {top}:", f"area {float(values['area']):.0%}"]
        return " ".join(_without_breaks(part) for part in parts) + (", flipped" if bool(values["flip"]) else "")
    if isinstance(step.operation, ColorJitter):
        order = [JITTER[which] for which in step.drawn["order"][row].tolist()]
        parts = [f"{name} {_number(name, values[name])}" for name in order]
        return "jitter: " + " ".join(_without_breaks(part) for part in [parts[0], *(f"→ {part}" for part in parts[1:])])
    words = ", ".join(_without_breaks(f"{name} {_number(name, value)}") for name, value in values.items())
    return operation_title(step.operation) + (f": {words}" if words else "")


def _without_breaks(words: str) -> str:
    """Joins words so that no line breaks inside."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def _number(name: str, value: Tensor) -> str:
    if value.dtype == torch.bool:
        return "yes" if bool(value) else "no"
    if not value.is_floating_point():
        return str(value.item())
    return f"{value.item():+.3f}".replace("-", "−") if name == "hue" else f"{value.item():.2f}"

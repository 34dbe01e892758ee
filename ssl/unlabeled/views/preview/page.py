"""Builds the page of a preview: one HTML file with its pictures inside; no other file, script or network access."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from unlabeled.pages.html import html_page, inline_png
from unlabeled.pages.plots import PALETTE
from unlabeled.views.operations import ColorJitter, RandomResizedCrop
from unlabeled.views.preview.draws import JITTER, GroupDraws, RecordedStep, operation_title, parameter_columns
from unlabeled.views.preview.tables import group_table, rates_verdict

WIDE, NARROW = 208, 146  # pixels of a picture: nine columns of narrow ones fit a screen of 1,600

STYLE = """
body { font: 14px/1.4 system-ui, "Liberation Sans", Arial, sans-serif; color: #222; margin: 24px; }
h1 { font-size: 22px; margin: 0 0 8px; } h2 { font-size: 16px; margin: 32px 0 8px; } h3 { font-size: 14px; margin: 0; }
p { margin: 4px 0; max-width: 70em; } .quiet { color: #777; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
.views { table-layout: fixed; }
.views th, .views td { width: var(--tile); padding: 0 12px 16px 0; vertical-align: top; }
.views th { padding-bottom: 8px; } .views th span { display: block; border-top: 4px solid; padding-top: 2px; }
.tile { position: relative; width: var(--tile); } .tile img { display: block; width: 100%; }
.pixels { image-rendering: pixelated; }
.tile svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.drawn { font-size: 11px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
.groups { display: flex; flex-wrap: wrap; gap: 24px 48px; }
.group th, .group td { padding: 3px 14px 3px 0; white-space: nowrap; font-size: 12px; }
.group td { border-bottom: 1px solid #e4e4e4; vertical-align: middle; } .group svg { display: block; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.flagged { color: #b00020; font-weight: 600; }
svg text { font-size: 9px; fill: #666; }
"""


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
    tile = WIDE if len(shown) <= 5 else NARROW
    top = "".join(f"<p><b>{escape(what)}</b>: {escape(text)}</p>" for what, text in facts.items())
    rows = "".join(_row(row, name, images, shown) for row, name in enumerate(names))
    tables = "".join(group_table(group) for group in groups)
    body = (
        f"<h1>{escape(title)}</h1>{top}<p>{rates_verdict(groups)}</p>\n"
        "<h2>What the first step sees</h2><p>Boxes on the left show where the views were cut out, in the colours of "
        "their columns. Operations are listed in the order in which they are applied.</p>"
        f'<table class="views" style="--tile: {tile}px">{_header(images, shown)}\n{rows}</table>\n'
        "<h2>What is drawn</h2><p>The first draws of this run; numbers are those of the images that got the operation. "
        "Pale: the configured range or probability; the line is its density. Boxes are whole pixels, and one that does "
        "not fit into the image is drawn again, so that large areas come seldom and small images give few shapes.</p>"
        f'<div class="groups">{tables}</div>'
    )
    return html_page(title, STYLE, body)


def _header(images: Sequence[Tensor], shown: Sequence[PreviewImage]) -> str:
    titles = [("as decoded", images, "transparent")]
    titles += [(f"view {number}", list(view.pixels), _colour(number)) for number, view in enumerate(shown, 1)]
    cells = []
    for title, column, colour in titles:
        sizes = {f"{image.shape[2]} × {image.shape[1]}" for image in column}
        size = f'<small class="quiet">{sizes.pop() if len(sizes) == 1 else "of different sizes"}</small>'
        cells.append(f'<th><span style="border-color: {colour}">{title} {size}</span></th>')
    return f"<tr>{''.join(cells)}</tr>"


def _colour(number: int) -> str:
    return PALETTE[(number - 1) % len(PALETTE)]


def _row(row: int, name: str, images: Sequence[Tensor], shown: Sequence[PreviewImage]) -> str:
    boxes = "".join(_box(view, row, _colour(number)) for number, view in enumerate(shown, 1))
    height, width = images[row].shape[1:]
    frame = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{boxes}</svg>'
    cells = [_cell(images[row], frame, "".join(f"<div>{escape(line)}</div>" for line in name.splitlines()))]
    cells += [_cell((view.pixels[row] * 255).round().byte(), "", _captions(view.steps, row)) for view in shown]
    return f'<tr class="image">{"".join(cells)}</tr>\n'


def _cell(pixels: Tensor, over: str, below: str) -> str:
    enlarged = ' class="pixels"' if pixels.shape[-1] < NARROW else ""  # else a browser smooths them
    picture = f'<img alt=""{enlarged} src="{inline_png(pixels)}">'
    return f'<td><div class="tile">{picture}{over}</div><div class="drawn">{below}</div></td>'


def _box(view: PreviewImage, row: int, colour: str) -> str:
    """Draws the box of a view, if its first operation that changes the frame is a crop."""
    for step in view.steps:
        if isinstance(step.operation, RandomResizedCrop):
            top, left, height, width = step.drawn["box"][row].tolist()
            place = f'x="{left}" y="{top}" width="{width}" height="{height}"'
            return f'<rect {place} fill="none" stroke="{colour}" stroke-width="2" vector-effect="non-scaling-stroke"/>'
        if step.changed is None:
            break
    return ""


def _captions(steps: Sequence[RecordedStep], row: int) -> str:
    """Lists the operations on an image, one per line, and those that were not applied."""
    done, left_out = [], []
    for step in steps:
        values = {
            name: column[row] for name, column in parameter_columns(step.operation, step.drawn, step.sizes).items()
        }
        if not bool(values.pop("applied", True)):
            left_out.append(operation_title(step.operation))
            continue
        nothing = step.changed is not None and not bool(step.changed[row])
        done.append(
            escape(caption(step, values, row)) + (' <span class="quiet">(changes nothing)</span>' if nothing else "")
        )
    lines = "".join(f"<div>{line}</div>" for line in done)
    return lines + (f'<div class="quiet">no {escape(", ".join(left_out))}</div>' if left_out else "")


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

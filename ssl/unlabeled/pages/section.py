"""A section of the report with a plot or pictures, once as HTML for the page and once as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.core.writing import save_picture
from unlabeled.pages.html import inline_thumbnail
from unlabeled.pages.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL = 112  # pixels: an image of 224 is then 4 kB of the page


@dataclass(frozen=True)
class Section:
    """A section of the report: title and words are plain text; ``html`` and ``markdown`` show the same content."""

    title: str
    words: str
    html: str
    markdown: str
    wide: bool = False  # takes the whole width of a large screen
    leads: bool = False  # stands above the numbers


@dataclass(frozen=True)
class Tile:
    """An image with the lines of text below it."""

    pixels: Tensor  # float [3, h, w] in [0, 1]
    lines: Sequence[str]
    right: bool | None = None  # marks it as right or wrong; None: neither


def plot_section(
    figure: "Figure", folder: Path, name: str, title: str, words: str, wide: bool = False, leads: bool = False
) -> Section:
    """Makes a section of one plot, which is also written to ``folder``/``name``.png."""
    drawn = save_figure(figure, folder / f"{name}.png", title)
    return Section(
        title, words, f'<div class="scroll" tabindex="0">{drawn}</div>', f"![{title}]({name}.png)", wide, leads
    )


def tiles_html(title: str, tiles: Sequence[Tile]) -> str:
    """Returns a titled row of tiles; ``title`` is plain text."""
    shown = f'<div class="tiles">{"".join(map(tile_html, tiles))}</div>' if tiles else "<p>none</p>"
    return f"<h3>{escape(title)}</h3>\n{shown}\n"


def tile_html(shown: Tile) -> str:
    """Returns the tile as HTML. A sign marks right and wrong, not colour alone."""
    kind = {True: " right", False: " wrong", None: ""}[shown.right]
    sign = {True: "✓ ", False: "✗ ", None: ""}[shown.right]
    pixels = thumbnail(shown.pixels, THUMBNAIL)
    enlarged = ' class="pixels"' if pixels.shape[-1] < THUMBNAIL else ""  # or a browser would smooth the pixels
    lines = "".join(f"<span>{escape(line)}</span>" for line in [sign + shown.lines[0], *shown.lines[1:]])
    picture = f'<img alt="{escape(shown.lines[0])}"{enlarged} src="{inline_thumbnail(to_uint8(pixels))}">'
    return f'<figure class="tile{kind}">{picture}<figcaption>{lines}</figcaption></figure>'


def thumbnail(image: Tensor, longest: int) -> Tensor:
    """Shrinks an image float [3, h, w] until its longer side has at most ``longest`` pixels."""
    factor = longest / max(image.shape[1:])
    if factor >= 1:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def to_uint8(image: Tensor) -> Tensor:
    """Converts float in [0, 1] to uint8."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def save_columns(columns: dict[str, list[Tensor]], path: Path) -> None:
    """Writes titled columns of images as one PNG, for Markdown."""
    from unlabeled.pages.draw import draw_columns

    small_ones = {
        name: torch.stack([thumbnail(image, THUMBNAIL) for image in images]) for name, images in columns.items()
    }
    save_picture(path, draw_columns(small_ones))

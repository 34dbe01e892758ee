"""A section of the report with a plot or pictures, once as HTML for the page and once as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.core.writing import save_picture
from unlabeled.pages.html import inline_thumbnail
from unlabeled.pages.plots import save_figure
from unlabeled.pages.template import safe, shared

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
    return Section(title, words, shared().scrolled(drawn), f"![{title}]({name}.png)", wide, leads)


def tiles_html(title: str, tiles: Sequence[Tile]) -> str:
    """Returns a titled row of tiles; ``title`` is plain text, and may be empty."""
    return str(shared().tiles(title, [safe(tile_html(each)) for each in tiles]))


def query_html(asked: Sequence[Tile], beside: Sequence[Tile]) -> str:
    """Returns one image and those that are most similar to it."""
    return str(shared().query(*([safe(tile_html(each)) for each in tiles] for tiles in (asked, beside))))


def tile_html(shown: Tile) -> str:
    """Returns the tile as HTML."""
    pixels = thumbnail(shown.pixels, THUMBNAIL)
    enlarged = pixels.shape[-1] < THUMBNAIL  # or a browser would smooth the pixels
    return str(shared().tile(shown.lines, shown.right, inline_thumbnail(to_uint8(pixels)), enlarged))


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

"""Draws images at the positions of their features, in the plane of largest variance (PCA)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.pages.draw import font, shrink_images
from unlabeled.pages.palette import class_colour

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH, LOWEST, MARGIN = 1000, 300, 12  # pixels: width of the map, its least height, margin around the images
THUMBNAIL, FRAME = 36, 3  # pixels of the longer side of an image, and of the frame in the colour of its class
TITLE, LEGEND = 26, 24  # pixels in height
MOST_IN_LEGEND = 20  # classes; with more, colours come twice


def principal_plane(x: Tensor) -> tuple[Tensor, Tensor]:
    """Projects rows [N, D], scaled to length 1, onto their first two principal components.

    Returns:
        Positions [N, 2] in float64, and the share of the variance along each axis [2]. The largest coordinate of each
        axis in absolute value is positive, so that the same features always give the same map; all 0 where every row
        has the same direction.
    """
    x = F.normalize(x.double())
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x @ x.T)  # N is smaller than D, or not much larger
    values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
    values = values.where(values > 1e-12 * len(x), torch.zeros_like(values))
    plane = F.pad(vectors[:, :2] * values[:2].sqrt(), (0, max(0, 2 - len(x))))
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    shares = F.pad(values[:2], (0, max(0, 2 - len(x)))) / values.sum().clamp(min=1e-300)
    return plane * torch.where(largest < 0, -1.0, 1.0), shares


def draw_map(pixels: Tensor, x: Tensor, labels: Tensor, classes: Sequence[str]) -> "Image":
    """Draws images at the positions of their features, framed in the colour of their class where they have one.

    Args:
        pixels: uint8 [N, 3, h, w].
        x: features [N, D].
        labels: int64 [N], -1 where there is none.
        classes: their names; a legend of at most 20.
    """
    from PIL import Image, ImageDraw

    position, shares = principal_plane(x)
    corners, height = _corners(position)
    colours = [_colour(label) for label in labels.tolist()]
    rows = _legend_rows(classes) if bool((labels >= 0).any()) and len(classes) <= MOST_IN_LEGEND else []
    picture = Image.new("RGB", (WIDTH, TITLE + height + LEGEND * len(rows)), "white")
    pen = ImageDraw.Draw(picture)
    for tile, (left, top), colour in zip(_tiles(pixels), corners, colours, strict=True):
        _put(picture, tile, left, TITLE + top, colour)
    share = " and ".join(f"{100 * float(each):.0f} %" for each in shares)
    text = f"{len(x):,} training images where their features are: PCA, {share} of the variance across and upwards"
    pen.text((MARGIN, 5), text, fill="black", font=font(15))
    _write_legend(pen, TITLE + height, rows, classes)
    return picture


def _tiles(pixels: Tensor) -> list[Any]:
    small = shrink_images(pixels.float() / 255, THUMBNAIL)
    times = max(1, THUMBNAIL // max(small.shape[2:]))  # images of few pixels are enlarged
    small = small.repeat_interleave(times, -1).repeat_interleave(times, -2)
    return list((small * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def _corners(position: Tensor) -> tuple[list[list[int]], int]:
    """Returns the upper left corner of each image and the total height, in pixels; both axes have one scale."""
    border = 2 * MARGIN + THUMBNAIL + 2 * FRAME
    position = position * torch.tensor([1.0, -1.0])  # y grows upwards
    lowest, extent = position.amin(0), position.amax(0) - position.amin(0)
    scale = (WIDTH - border) / float(extent.amax().clamp(min=1e-9))
    height = max(LOWEST, border + round(scale * float(extent[1])))
    room = torch.tensor([WIDTH - border, height - border])
    corners: list[list[int]] = ((position - lowest - extent / 2) * scale + room / 2 + MARGIN).round().long().tolist()
    return corners, height


def _put(picture: "Image", tile: Any, left: int, top: int, colour: str | None) -> None:
    from PIL import Image

    image = Image.fromarray(tile)
    if colour is not None:
        picture.paste(colour, (left, top, left + image.width + 2 * FRAME, top + image.height + 2 * FRAME))
    picture.paste(image, (left + FRAME, top + FRAME))


def _colour(label: int) -> str | None:
    return None if label < 0 else class_colour(label)


def _legend_rows(classes: Sequence[str]) -> list[list[int]]:
    """Returns which classes stand in each line of the legend."""
    rows, used = [[]], MARGIN  # type: list[list[int]], int
    for label, name in enumerate(classes):
        width = 34 + round(font(14).getlength(name))
        if used + width > WIDTH and rows[-1]:
            rows.append([])
            used = MARGIN
        rows[-1].append(label)
        used += width
    return rows


def _write_legend(pen: Any, top: int, rows: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    for row in rows:
        left = MARGIN
        for label in row:
            pen.rectangle((left, top + 5, left + 12, top + 17), fill=_colour(label))
            pen.text((left + 17, top + 3), classes[label], fill="black", font=font(14))
            left += 34 + round(font(14).getlength(classes[label]))
        top += LEGEND

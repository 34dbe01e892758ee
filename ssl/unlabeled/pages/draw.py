"""Draws titled columns of images as one picture, with the font and the shrinking that this needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_TILE = 128  # pixels; smaller images are enlarged by a whole number

TITLE, GAP, CAPTION = 16, 4, 124  # pixels; a caption stands left of its row


def draw_columns(columns: dict[str, Tensor], captions: Sequence[str] = ()) -> "Image":
    """Draws titled columns [N, 3, h, w] in [0, 1] side by side; captions, if any, stand left of the rows.

    A column with fewer images than another one ends in white.
    """
    from PIL import Image, ImageDraw
    from torch.nn.utils.rnn import pad_sequence

    tiles = pad_sequence(list(columns.values()), padding_value=1.0)  # [N, columns, 3, h, w]
    size = tiles.shape[-1]
    tiles = _enlarged(tiles, max(1, -(-SMALLEST_TILE // size)))
    tiles = torch.nn.functional.pad(tiles, (0, GAP, 0, GAP), value=1.0)
    rows, across, channels, height, width = tiles.shape
    page = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, across * width, channels)
    left = CAPTION if captions else 0
    page = torch.nn.functional.pad(page, (0, 0, left, 0, TITLE, 0), value=1.0)
    picture = Image.fromarray((page * 255).round().byte().cpu().numpy())
    pen = ImageDraw.Draw(picture)
    for number, name in enumerate(columns):
        pen.text((left + number * width + 2, 0), _fitting(name, width - GAP, font(12)), fill=(0, 0, 0), font=font(12))
    for number, caption in enumerate(captions):
        pen.multiline_text((2, TITLE + number * height + 2), caption, fill=(0, 0, 0), font=font(12))
    return picture


def _fitting(name: str, width: int, letters: Any) -> str:
    """Returns the name, shortened until it has no more pixels than the column."""
    shown = name
    while letters.getlength(shown) > width and len(shown) > 2:
        shown = shown.removesuffix("…")[:-1] + "…"
    return shown


def _enlarged(tiles: Tensor, times: int) -> Tensor:
    return tiles.repeat_interleave(times, -1).repeat_interleave(times, -2)


def font(size: int) -> Any:
    """Returns Pillow's own font, so that pictures look the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def shrink_images(images: Tensor, longest: int) -> Tensor:
    """Shrinks images [N, 3, h, w] until their longer side has at most ``longest`` pixels."""
    factor = longest / max(images.shape[2:])
    if factor >= 1:
        return images
    height, width = (max(1, round(side * factor)) for side in images.shape[2:])
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True).clamp(0, 1)

"""Draws pairs of images side by side: the picture that ``unlabeled.commands.inspect`` writes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.data.decoding import in_colour
from unlabeled.pages.draw import draw_columns

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS, SIDE = 8, 192  # pairs per column, and most pixels per side of an image


def draw_pairs(pairs: list[list[Tensor]]) -> "Image":
    """Draws one or more pairs of images uint8 [C, h, w] of any sizes, in columns of eight pairs."""
    rows = min(ROWS, len(pairs))
    size = min(SIDE, max(max(image.shape) for pair in pairs for image in pair))
    columns: dict[str, Tensor] = {}
    for begin in range(0, len(pairs), rows):
        numbers = f"{begin + 1} to {min(begin + rows, len(pairs))}"
        for name, side in ((numbers, 0), (f"near {numbers}", 1)):
            tiles = torch.stack([_tile(pair[side], size) for pair in pairs[begin : begin + rows]])
            columns[name] = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, rows - len(tiles)), value=1.0)
    return draw_columns(columns)


def _tile(image: Tensor, size: int) -> Tensor:
    """Scales the image to fit a white square, float [3, size, size] in [0, 1]."""
    longer = max(image.shape[1:])
    height, width = (max(1, side * size // longer) for side in image.shape[1:])
    mode, antialias = ("bilinear", True) if size < longer else ("nearest", False)
    fitted = F.interpolate(in_colour(image[None].float() / 255), (height, width), mode=mode, antialias=antialias)[0]
    return F.pad(fitted, (0, size - width, 0, size - height), value=1.0).clamp(0, 1)

"""Small squares of images, and JPEG sheets of many of them, so that 50,000 lie in one page."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Thumbnails = NDArray[np.uint8]  # [N, t, t, 3]
# Largest number of images → pixels of a thumbnail; whole blocks of a JPEG, or neighbours on a sheet would mix
SIZES = {500: 96, 4_000: 64, 12_000: 48}
SMALLEST = 32
SHEET = 2048  # pixels to a side: what the canvas of a phone takes
QUALITY = 70  # of the JPEGs, our choice: 50,000 photographs of 32 pixels are then 25 MB


def thumbnail_size(images: int) -> int:
    """Returns the pixels of a thumbnail's side, for a page of so many images."""
    return next((size for most, size in SIZES.items() if images <= most), SMALLEST)


def thumbnails(images: Tensor, sizes: Tensor | None, side: int) -> Thumbnails:
    """Cuts the middle square out of each image and makes ``side`` pixels of it: uint8 [B, side, side, 3].

    Args:
        images: uint8 [B, C, H, W] on a common canvas; one channel is shown grey, of more than three the first three.
        sizes: [B, 2], height and width of each image on it; None: all of it.
        side: pixels.
    """
    rgb = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if sizes is None:
        return _small(_middle(rgb), side)
    each = zip(rgb, sizes.tolist(), strict=True)
    return np.concatenate([_small(_middle(image[None, :, :height, :width]), side) for image, (height, width) in each])


def _middle(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def _small(images: Tensor, side: int) -> Thumbnails:
    if images.shape[-1] < side:  # pixels of small images stay squares
        made = F.interpolate(images, (side, side), mode="nearest-exact")
    elif images.shape[-1] > side:
        made = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True).round().clamp(0, 255)
    else:
        made = images
    return np.asarray(made.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy())


def per_row(side: int) -> int:
    """Returns how many thumbnails stand beside one another on a sheet, and as many rows below one another."""
    return SHEET // side


def sheets(made: Thumbnails) -> Iterator[str]:
    """Yields sheets as JPEG in base64; of equal rows, filled from left to right."""
    from PIL import Image

    side = made.shape[1]
    across = per_row(side)
    for first in range(0, len(made), across**2):
        some = made[first : first + across**2]
        rows = -(-len(some) // across)
        grid = np.zeros((rows * across, side, side, 3), np.uint8)
        grid[: len(some)] = some
        whole = grid.reshape(rows, across, side, side, 3).swapaxes(1, 2).reshape(rows * side, across * side, 3)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(whole)).save(buffer, "JPEG", quality=QUALITY)
        yield base64.b64encode(buffer.getvalue()).decode()

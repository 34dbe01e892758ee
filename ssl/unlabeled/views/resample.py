"""Separable linear resampling of a batch, each image with weights of its own: what crop, resize and blur come down to.

On a GPU the weights are dense matrices: two batched products are what it is quickest at. On a CPU only the few pixels
that count are added up. On one core, 400 → 224 pixels took 278 ms for 32 images as products and 57 ms so; blurring 16
images of 224 pixels 11 to 39 ms by kornia's ``gaussian_blur2d`` and 5 to 8 ms so.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Taps(NamedTuple):
    """What each pixel of a line is made of."""

    pixel: Tensor  # int64 [B, size, K], numbers of pixels of the line before
    weight: Tensor  # float32 [B, size, K]; 0 where fewer than K pixels count


def resample(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """New rows and columns out of old ones.

    Args:
        images: float [B, C, H, W].
        rows: with numbers below H, S of them.
        columns: with numbers below W, T of them.

    Returns:
        [B, C, S, T], same dtype.
    """
    if images.device.type == "cpu" and images.dtype == torch.float32:
        return _add_up(_add_up(images, rows).mT.contiguous(), columns).mT
    left, right = matrix(rows, images.shape[2]), matrix(columns, images.shape[3])
    product: Tensor = left.to(images.dtype)[:, None] @ images @ right.to(images.dtype)[:, None].mT
    return product


def matrix(taps: Taps, pixels: int) -> Tensor:
    """The weights as [B, size, pixels]."""
    empty = taps.weight.new_zeros(*taps.weight.shape[:2], pixels)
    return empty.scatter_add_(2, taps.pixel.expand(taps.weight.shape), taps.weight)


def _add_up(images: Tensor, rows: Taps) -> Tensor:
    """[B, C, H, W] → [B, C, S, W], each new row the weighted sum of a few old ones."""
    batch, channels, height, width = images.shape
    lines = torch.arange(batch * channels).view(batch, channels, 1, 1) * height
    pixel = (lines + rows.pixel[:, None]).flatten(0, 2)
    weight = rows.weight[:, None].expand(-1, channels, -1, -1).flatten(0, 2)
    table = images.reshape(-1, width)
    return F.embedding_bag(pixel, table, mode="sum", per_sample_weights=weight).view(batch, channels, -1, width)

"""Crop, resize and flip of a whole batch, each image with its own box, as two matrix products per image.

Resizing is linear and separable: out = R · image · Cᵀ, where row i of R holds the weights of the pixels that output
row i is made of. Weights are those of PIL and of torchvision with ``antialias=True``; the box and the flip are folded
into the two matrices. kornia's crop has no antialias.
"""

from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """Cut ``boxes`` out of ``images``, resize them to ``size`` × ``size`` and mirror those where ``flip`` holds.

    Args:
        images: float [B, C, H, W].
        boxes: int64 [B, 4], top, left, height and width in pixels, inside the image.
        flip: bool [B].

    Returns:
        [B, C, size, size], same dtype; bicubic weights overshoot, so values are clamped to [0, 1].
    """
    top, left, height, width = boxes.unbind(1)
    rows = resize_weights(top, height, images.shape[2], size, interpolation)
    columns = resize_weights(left, width, images.shape[3], size, interpolation)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    rows, columns = rows.to(images.dtype), columns.to(images.dtype)
    return (rows[:, None] @ images @ columns[:, None].mT).clamp(0, 1)


def resize_weights(start: Tensor, length: Tensor, pixels: int, size: int, interpolation: Interpolation) -> Tensor:
    """Weights [B, size, pixels] that resize the interval ``start`` … ``start + length`` of a line of ``pixels``.

    Rows sum to 1 and are 0 outside the interval, as if it had been cut out before resizing.
    """
    position = torch.arange(pixels, device=start.device) - start[:, None]  # [B, pixels], within the interval
    scale = length[:, None] / size
    centre = (torch.arange(size, device=start.device) + 0.5) * scale  # [B, size]
    stretch = scale.clamp(min=1)[:, :, None]  # antialias: the kernel widens when the image shrinks
    distance = (position[:, None] + 0.5 - centre[:, :, None]) / stretch
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    inside = (position >= 0) & (position < length[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = −0.5, as PIL has it."""
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))

"""Crop, resize and flip of a whole batch, each image with its own box.

Resizing is linear and separable: out = R · image · Cᵀ, where row i of R holds the weights of the pixels that output
row i is made of. Weights are those of PIL and of torchvision with ``antialias=True``; the box and the flip are folded
into them. kornia's crop has no antialias.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from unlabeled.views.resample import Taps, resample

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
    rows = taps(top, height, images.shape[2], size, interpolation)
    columns = taps(left, width, images.shape[3], size, interpolation)
    columns = Taps(*(torch.where(flip[:, None, None], each.flip(1), each) for each in columns))
    return resample(images, rows, columns).clamp(0, 1)


def taps(start: Tensor, length: Tensor, pixels: int, size: int, interpolation: Interpolation) -> Taps:
    """How to resize the interval ``start`` … ``start + length`` [B] of a line of ``pixels`` to ``size`` pixels.

    Nothing outside the interval counts, as if it had been cut out before resizing.
    """
    scale = length[:, None] / size
    stretch = scale.clamp(min=1)  # antialias: the kernel widens when the image shrinks
    reach = 1 if interpolation == "bilinear" else 2
    support = stretch * reach
    centre = (torch.arange(size, device=start.device) + 0.5) * scale  # [B, size]
    first = (centre - support).floor()
    longest = int(length.max()) if length.device.type == "cpu" else pixels  # a GPU is not waited for
    count = 2 * math.ceil(reach * max(1.0, longest / size)) + 1
    position = first[:, :, None] + torch.arange(count, device=start.device)  # within the interval
    distance = (position + 0.5 - centre[:, :, None]) / stretch[:, :, None]
    weight = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weight = weight * ((position >= 0) & (position < length[:, None, None]))
    pixel = start[:, None, None] + position.long().clamp(min=0).minimum(length[:, None, None] - 1)
    return Taps(pixel, weight / weight.sum(2, keepdim=True))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = −0.5, as PIL has it."""
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))

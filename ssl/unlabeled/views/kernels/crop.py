"""Crops, resizes and flips a whole batch, each image with its own box.

Resizing is linear and separable: out = R · image · Cᵀ, where row i of R holds the weights of the source pixels of
output row i. Weights are those of PIL and of torchvision with ``antialias=True``; they include the box and the flip.
kornia's crop has no antialias.
"""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unlabeled.views.kernels.resample import Taps, resize_dense, resize_sparse, use_sparse_weights

Interpolation = Literal["bilinear", "bicubic"]
REACH = {"bilinear": 1, "bicubic": 2}  # pixels with weight to each side, at a stretch of 1
SHORT = 64  # pixels of a line, up to which the weights of intervals of every length are kept


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """Cuts ``boxes`` out of ``images``, resizes them to ``size`` × ``size`` and mirrors those where ``flip`` holds.

    Args:
        images: float [B, C, H, W].
        boxes: int64 [B, 4], top, left, height and width in pixels, inside the image.
        flip: bool [B].

    Returns:
        [B, C, size, size], same dtype; bicubic weights overshoot, so values are clamped to [0, 1].
    """
    top, left, height, width = boxes.unbind(1)
    vertical, horizontal = (top, height, torch.zeros_like(flip), size), (left, width, flip, size)
    if use_sparse_weights(images):
        rows = taps_of(*vertical, interpolation, images.shape[2])
        made = resize_sparse(images, rows, taps_of(*horizontal, interpolation, images.shape[3]))
    else:
        lines = matrix(kernel(*vertical, interpolation), images.shape[2])
        made = resize_dense(images, lines, matrix(kernel(*horizontal, interpolation), images.shape[3]))
    return made.clamp_(0, 1).to(images.dtype)


def crop_views(
    images: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: Interpolation, views: int
) -> Tensor:
    """Makes several crops of each image by two batched products; shapes do not depend on the boxes.

    Args:
        images: uint8 [n, C, H, W].
        boxes, flip: as :func:`crop_resize` takes them, [n · views] rows, those of an image beside each other.
        size, interpolation: as there.
        views: crops of each image.

    Returns:
        float32 [n · views, C, size, size] in [0, 1].
    """
    count, channels, height, width = images.shape
    top, left, high, wide = boxes.unbind(1)
    lines = kernel(  # rows and columns together
        torch.cat([top, left]),
        torch.cat([high, wide]),
        torch.cat([torch.zeros_like(flip), flip]),
        size,
        interpolation,
    )
    rows, columns = matrix(lines, max(height, width)).chunk(2)
    beside = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # [n, H, C, W]
    cut = rows[..., :height].reshape(count, views * size, height) @ beside.flatten(2)  # [n, views · size, C · W]
    made = cut.view(count * views, size * channels, width) @ columns[..., :width].mT
    return made.view(count * views, size, channels, size).transpose(1, 2).clamp(0, 1)


class Kernel(NamedTuple):
    """Describes how intervals of lines are resized. Pixels count from the start of the interval."""

    start: Tensor  # [B, 1, 1], where the interval begins in its line
    length: Tensor  # [B, 1, 1], pixels
    centre: Tensor  # [B, size, 1], of each new pixel
    stretch: Tensor  # [B, 1, 1], width of the kernel: it widens when the image shrinks (antialias)
    interpolation: Interpolation

    def weights(self, position: Tensor) -> Tensor:
        """Returns the weights of pixels at integers ``position`` [B, size or 1, K]; 0 outside of the interval."""
        distance = ((position + 0.5 - self.centre) / self.stretch).abs_()
        weight = _triangle(distance) if self.interpolation == "bilinear" else _cubic(distance)
        inside = (position + 1).clamp_(0, 1) * (self.length - position).clamp_(0, 1)
        weight = weight.mul_(inside)
        return weight.div_(weight.sum(2, keepdim=True))


def kernel(start: Tensor, length: Tensor, flip: Tensor, size: int, interpolation: Interpolation) -> Kernel:
    """Returns the kernel of intervals [B] resized to ``size`` pixels, reversed where ``flip`` holds."""
    start, length, flip = (each[:, None, None].float() for each in (start, length, flip))
    number = torch.arange(size, device=start.device)[:, None] + 0.5
    scale = length / size
    return Kernel(start, length, (number + flip * (size - 2 * number)) * scale, scale.clamp(min=1), interpolation)


def taps(lines: Kernel) -> Taps:
    """Returns the few pixels with weight, for a CPU."""
    support = lines.stretch * REACH[lines.interpolation]
    position = (lines.centre - support).floor() + torch.arange(2 * math.ceil(float(support.max())) + 1)
    nearest = position.clamp(min=0).minimum(lines.length - 1)
    return Taps(nearest.add_(lines.start).int(), lines.weights(position))


def taps_of(start: Tensor, length: Tensor, flip: Tensor, size: int, interpolation: Interpolation, pixels: int) -> Taps:
    """Returns the same as ``taps(kernel(…))``, bit for bit; of lines of few ``pixels`` from a table."""
    if pixels > SHORT:
        return taps(kernel(start, length, flip, size, interpolation))
    reach = REACH[interpolation]
    widest = max(reach, -(-int(length.max()) * reach // size))  # pixels to each side that have weight
    longest = min(pixels, widest * size // reach)  # that reaches as far, so that there are few tables
    table, row = _table(longest, size, interpolation), length - 1 + longest * flip
    return Taps(table.pixel.index_select(0, row).add_(start[:, None, None]), table.weight.index_select(0, row))


@lru_cache(maxsize=SHORT)  # 0.3 MB each where images and views are of 64 pixels
def _table(longest: int, size: int, interpolation: Interpolation) -> Taps:
    """Returns the taps of intervals of 1 … ``longest`` pixels from pixel 0, then of the same ones reversed."""
    with torch.inference_mode(False):  # it is kept, and gradients may be needed at its next use
        length, flip = torch.arange(1, longest + 1).repeat(2), torch.arange(2).repeat_interleave(longest)
        return taps(kernel(torch.zeros_like(length), length, flip, size, interpolation))


def matrix(lines: Kernel, pixels: int) -> Tensor:
    """Returns the weights of all ``pixels`` of a line, [B, size, pixels]: fixed shapes, so nothing waits for a GPU."""
    return lines.weights(torch.arange(pixels, device=lines.start.device) - lines.start)


def _triangle(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).clamp_(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = −0.5, as PIL has it: u² (u − 1) / 2 + v² (1 − 2v), u = 2 − |x| and v = 1 − |x| or 0.

    It avoids ``where`` between two polynomials, which took thirty times as long as a product on a CPU.
    """
    far, near = (2 - distance).clamp_(min=0), (1 - distance).clamp_(min=0)
    return (far * far).mul_(far.sub_(1)).mul_(0.5).addcmul_(near * near, near.mul_(-2).add_(1))

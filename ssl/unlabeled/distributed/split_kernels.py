"""Triton kernels that normalise each part of a batch: two for the way forward and two back, without copies.

Images lie in channels_last, so a part is [rows, C] with B / parts · h · w rows. Programs read pieces of its rows; the
second kernel joins what the pieces of the first one found. All sums are float32, in an order that does not change.
"""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

PROGRAMS = 1024  # to start at least, if there are rows enough: an H100 runs 132 · 8 of them at a time (our choice)
PIECES = 64  # of the rows of a part at most: the second kernel reads the results of all


@triton.jit  # type: ignore[untyped-decorator]
def statistics(x, means, squares, rows, channels, piece_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes mean and sum of squared differences from it of a piece, [pieces, parts, C] each; Chan et al. 1979."""
    part, piece = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = piece * piece_rows
    end = tl.minimum(begin + piece_rows, rows)
    mean = tl.zeros([COLUMNS], tl.float32)
    square = tl.zeros([COLUMNS], tl.float32)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (column < channels)[None, :]
        place = (part.to(tl.int64) * rows + row)[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(end - first, ROWS).to(tl.float32)
        own = tl.sum(value, 0) / count
        off = tl.where(inside, value - own[None, :], 0.0)
        seen = (first - begin).to(tl.float32)
        shift = own - mean
        mean += shift * (count / (seen + count))
        square += tl.sum(off * off, 0) + shift * shift * (seen * count / (seen + count))
    place = (piece * tl.num_programs(0) + part) * channels + column
    tl.store(means + place, mean, mask=column < channels)
    tl.store(squares + place, square, mask=column < channels)


@triton.jit  # type: ignore[untyped-decorator]
def normalise(  # type: ignore[no-untyped-def]
    x, made, weight, bias, means, squares, mean_of, inverse_of,
    rows, channels, piece_rows, pieces, eps, AFFINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Joins the pieces' statistics, writes those of the part, [parts, C] each, and normalises its own piece."""
    part, piece = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < channels
    mean = tl.zeros([COLUMNS], tl.float32)
    square = tl.zeros([COLUMNS], tl.float32)
    for other in range(0, pieces):
        place = (other * tl.num_programs(0) + part) * channels + column
        seen = (other * piece_rows).to(tl.float32)
        count = tl.minimum(rows - other * piece_rows, piece_rows).to(tl.float32)
        shift = tl.load(means + place, mask=there, other=0.0) - mean
        mean += shift * (count / (seen + count))
        square += tl.load(squares + place, mask=there, other=0.0) + shift * shift * (seen * count / (seen + count))
    inverse = 1.0 / tl.sqrt(square / rows.to(tl.float32) + eps)
    if piece == 0:
        tl.store(mean_of + part * channels + column, mean, mask=there)
        tl.store(inverse_of + part * channels + column, inverse, mask=there)
    end = tl.minimum((piece + 1) * piece_rows, rows)
    for first in range(piece * piece_rows, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & there[None, :]
        place = (part.to(tl.int64) * rows + row)[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        value = (value - mean[None, :]) * inverse[None, :]
        if AFFINE:
            scale = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
            value = value * scale[None, :] + tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
        tl.store(made + place, value.to(made.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def gradient_sums(  # type: ignore[no-untyped-def]
    x, gradient, mean_of, inverse_of, plain, weighted,
    rows, channels, piece_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes Σ g and Σ g · x̂ of a piece, [pieces, parts, C] each, with x̂ the normalised value."""
    part, piece = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < channels
    mean = tl.load(mean_of + part * channels + column, mask=there, other=0.0)
    inverse = tl.load(inverse_of + part * channels + column, mask=there, other=0.0)
    total = tl.zeros([COLUMNS], tl.float32)
    product = tl.zeros([COLUMNS], tl.float32)
    end = tl.minimum((piece + 1) * piece_rows, rows)
    for first in range(piece * piece_rows, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & there[None, :]
        place = (part.to(tl.int64) * rows + row)[:, None] * channels + column[None, :]
        slope = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        value = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * inverse[None, :]
        total += tl.sum(slope, 0)
        product += tl.sum(slope * value, 0)
    place = (piece * tl.num_programs(0) + part) * channels + column
    tl.store(plain + place, total, mask=there)
    tl.store(weighted + place, product, mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def gradient_of_images(  # type: ignore[no-untyped-def]
    x, gradient, made, weight, mean_of, inverse_of, plain, weighted, sums,
    rows, channels, piece_rows, pieces, AFFINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Joins the pieces' sums, writes those of the part to ``sums`` [2, parts, C]: Σ g · x̂, Σ g, and writes the gradient
    w / σ · (g − Σ g / n − x̂ · Σ g · x̂ / n) of its own piece.
    """
    part, piece = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < channels
    mean = tl.load(mean_of + part * channels + column, mask=there, other=0.0)
    inverse = tl.load(inverse_of + part * channels + column, mask=there, other=0.0)
    total = tl.zeros([COLUMNS], tl.float32)
    product = tl.zeros([COLUMNS], tl.float32)
    for other in range(0, pieces):
        place = (other * tl.num_programs(0) + part) * channels + column
        total += tl.load(plain + place, mask=there, other=0.0)
        product += tl.load(weighted + place, mask=there, other=0.0)
    if piece == 0:
        tl.store(sums + part * channels + column, product, mask=there)
        tl.store(sums + (tl.num_programs(0) + part) * channels + column, total, mask=there)
    scale = inverse
    if AFFINE:
        scale = inverse * tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    total = total / rows.to(tl.float32)
    product = product / rows.to(tl.float32)
    end = tl.minimum((piece + 1) * piece_rows, rows)
    for first in range(piece * piece_rows, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & there[None, :]
        place = (part.to(tl.int64) * rows + row)[:, None] * channels + column[None, :]
        slope = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        value = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * inverse[None, :]
        slope = scale[None, :] * (slope - total[None, :] - value * product[None, :])
        tl.store(made + place, slope.to(made.dtype.element_ty), mask=inside)


class _Shape:
    """How the programs share the work: each a piece of a part's rows, and a block of channels."""

    def __init__(self, images: Tensor, parts: int) -> None:
        self.rows, self.channels, self.parts = images[:, 0].numel() // parts, images.shape[1], parts
        self.columns = min(64, triton.next_power_of_2(self.channels))
        self.row_block = 4096 // self.columns
        blocks = triton.cdiv(self.channels, self.columns)
        most = min(PIECES, triton.cdiv(self.rows, self.row_block))
        pieces = max(1, min(most, triton.cdiv(PROGRAMS, parts * blocks)))
        self.piece_rows = triton.cdiv(triton.cdiv(self.rows, pieces), self.row_block) * self.row_block
        self.pieces = triton.cdiv(self.rows, self.piece_rows)
        self.grid = (parts, blocks, self.pieces)

    def of_pieces(self, images: Tensor) -> list[Tensor]:
        made = torch.empty(2, self.pieces, self.parts, self.channels, dtype=torch.float32, device=images.device)
        return list(made.unbind(0))


def forward(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, parts: int, eps: float, run: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises; see :func:`unlabeled.distributed.parts.normalise_parts`. ``run`` wraps a kernel, for tests."""
    run, shape = run or (lambda kernel: kernel), _Shape(images, parts)
    images = images.contiguous(memory_format=torch.channels_last)
    made, (means, squares) = torch.empty_like(images), shape.of_pieces(images)
    mean, inverse = torch.empty(2, parts, shape.channels, dtype=torch.float32, device=images.device).unbind(0)
    sizes, blocks = (shape.rows, shape.channels, shape.piece_rows), (shape.row_block, shape.columns)
    run(statistics)[shape.grid](images, means, squares, *sizes, *blocks)
    given = (images, made, weight, bias, means, squares, mean, inverse)
    run(normalise)[shape.grid](*given, *sizes, shape.pieces, eps, weight is not None and bias is not None, *blocks)
    return made, mean, inverse


def backward(
    gradient: Tensor, images: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, run: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of images, weight and bias; the last two are Σ g · x̂ and Σ g over all images, [C]."""
    run, parts = run or (lambda kernel: kernel), len(mean)
    shape = _Shape(images, parts)
    images, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (images, gradient))
    made, (plain, weighted) = torch.empty_like(images), shape.of_pieces(images)
    sums = torch.empty(2, parts, shape.channels, dtype=torch.float32, device=images.device)
    sizes, blocks = (shape.rows, shape.channels, shape.piece_rows), (shape.row_block, shape.columns)
    run(gradient_sums)[shape.grid](images, gradient, mean, inverse, plain, weighted, *sizes, *blocks)
    given = (images, gradient, made, weight, mean, inverse, plain, weighted, sums)
    run(gradient_of_images)[shape.grid](*given, *sizes, shape.pieces, weight is not None, *blocks)
    return made, sums[0].sum(0), sums[1].sum(0)  # not one sum: autograd would copy its parts

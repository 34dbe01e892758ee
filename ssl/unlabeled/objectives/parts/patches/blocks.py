"""Draws the blocks of patches of I-JEPA: one that is seen and several that are predicted (arXiv:2301.08243, section 3).

Official code: github.com/facebookresearch/ijepa, src/masks/multiblock.py. Everything is drawn on the host for the whole
global batch, from (seed, batch), so that each process knows the shortest context of all.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unlabeled import distributed
from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.objective import Progress

TRIES = 20  # positions of the context before it may cover one target more (multiblock.py, timeout)
WHOLE = 196  # patches at which BlockRules.least is meant: 14 × 14, the fewest of the official networks
_BLOCKS = 0x626C6F636B  # "block" in ASCII; the seeds of views have the small number of a view here

Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]
Size: TypeAlias = tuple[int, int]  # rows and columns of a block


class BlockRules(NamedTuple):
    """Says which blocks are drawn; shares are of all patches, ratios are height / width."""

    targets: int  # blocks that are predicted, of each image
    target_scale: tuple[float, float]
    target_ratio: tuple[float, float]
    context_scale: tuple[float, float]
    least: int  # the context keeps more patches than this; of fewer than 196 patches the same share of it, at least 1

    def fewest(self, grid: int) -> int:
        """Returns the number of patches that a context of ``grid`` × ``grid`` patches keeps more of."""
        return max(1, self.least * min(grid**2, WHOLE) // WHOLE)

    def check(self, grid: int) -> None:
        """Raises UserError where a block has no place, or the smallest context too few patches."""
        height, width = block_size(0.0, self.context_scale, (1.0, 1.0), grid)
        if grid < 3 or height * width <= self.fewest(grid):
            raise UserError(
                f"objective.context_scale={list(self.context_scale)}: {grid} × {grid} patches give a context of"
                f" {height} × {width}, and more than {self.fewest(grid)} must be seen: give a smaller"
                " backbone.patch_size, larger views, or a smaller objective.least_context"
            )


class Blocks(NamedTuple):
    """Holds the patches of some images, counted row by row, in ascending order."""

    context: Tensor  # int64 [B, k], what the encoder sees; k is the same on all processes
    targets: Tensor  # int64 [B, M, n], the blocks that are predicted


def block_size(draw: float, scale: tuple[float, float], ratio: tuple[float, float], grid: int) -> Size:
    """Returns rows and columns of a block; both of its properties follow from one ``draw`` in [0, 1), as officially.

    A share of ``scale`` of the patches, rounded down, of a ``ratio`` of height to width; each side rounded, at least 1
    and at most ``grid`` − 1.
    """
    patches = int(grid**2 * (scale[0] + draw * (scale[1] - scale[0])))
    shape = ratio[0] + draw * (ratio[1] - ratio[0])
    height, width = round(math.sqrt(patches * shape)), round(math.sqrt(patches / shape))
    return min(max(height, 1), grid - 1), min(max(width, 1), grid - 1)


def draw_blocks(progress: Progress, count: int, grid: int, rules: BlockRules) -> Blocks:
    """Returns the blocks of this process's ``count`` images, of ``grid`` × ``grid`` patches.

    The two sizes are drawn once for a batch, positions for each image. Context patches in a target are removed; all
    contexts are cut to the shortest of the global batch, at their end.
    """
    generator = _generator(progress)
    first, total = distributed.rank() * count, distributed.world_size() * count
    of_target, of_context = _sizes(generator, grid, rules)
    targets = _place(generator, of_target, (total, rules.targets), grid)
    covered = np.zeros((total, rules.targets, grid**2), dtype=np.bool_)
    np.put_along_axis(covered, targets, True, axis=2)
    seen = _contexts(generator, of_context, covered, rules.fewest(grid), grid)
    shortest = int(seen.sum(1).min())
    order: Any = np.argsort(~seen, axis=1, kind="stable")[:, :shortest]
    rows = slice(first, first + count)
    return Blocks(torch.tensor(order[rows]), torch.tensor(targets[rows]))


def drawn_sizes(progress: Progress, grid: int, rules: BlockRules) -> tuple[Size, Size]:
    """Returns the sizes of targets and of contexts that :func:`draw_blocks` takes for a batch."""
    return _sizes(_generator(progress), grid, rules)


def _generator(progress: Progress) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(progress.seed, progress.batch, _BLOCKS)))


def _sizes(generator: np.random.Generator, grid: int, rules: BlockRules) -> tuple[Size, Size]:
    of_target, of_context = generator.random(2)
    target = block_size(of_target, rules.target_scale, rules.target_ratio, grid)
    return target, block_size(of_context, rules.context_scale, (1.0, 1.0), grid)


def _place(generator: np.random.Generator, size: Size, shape: tuple[int, ...], grid: int) -> Ints:
    """Returns the patches [*shape, height·width] of blocks at positions of their own.

    As officially a block begins before row ``grid`` − height and column ``grid`` − width, so that none reaches the last
    row or column.
    """
    height, width = size
    top = generator.integers(0, grid - height, shape)
    left = generator.integers(0, grid - width, shape)
    inside = (np.arange(height)[:, None] * grid + np.arange(width)).ravel()
    placed: Ints = (top * grid + left)[..., None] + inside
    return placed


def _contexts(generator: np.random.Generator, size: Size, covered: Bools, least: int, grid: int) -> Bools:
    """Returns which patches [N, L] are seen: a block without those that targets cover [N, M, L].

    Positions are drawn until more than ``least`` are left; after each :data:`TRIES` of them one target fewer, the last
    one first, is left out of the block, as officially.
    """
    images, targets, patches = covered.shape
    seen = np.zeros((images, patches), dtype=np.bool_)
    missing = np.ones(images, dtype=np.bool_)
    for attempt in range(TRIES * (targets + 1)):
        block = np.zeros_like(seen)
        np.put_along_axis(block, _place(generator, size, (images,), grid), True, axis=1)
        left = block & ~covered[:, : targets - attempt // TRIES].any(1)
        enough = missing & (left.sum(1) > least)
        seen[enough] = left[enough]
        missing &= ~enough
        if not missing.any():
            break
    return seen

"""Masks made of blocks of patches, as BEiT, iBOT, DINOv2 and data2vec draw them, here for a whole batch at once.

Bao et al. 2021, BEiT, arXiv:2106.08254, Algorithm 1. Official codes: microsoft/unilm, beit/masking_generator.py;
bytedance/ibot, loader.py; facebookresearch/dinov2, data/masking.py and data/collate.py; facebookresearch/fairseq,
examples/data2vec/models/data2vec_vision.py. They differ in ``wanted``, ``smallest`` and ``largest`` only. NumPy draws
them on the host: its small operations are the faster ones.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from unlabeled import distributed
from unlabeled.core.seeding import derive_seed
from unlabeled.objective import Progress
from unlabeled.objectives.parts.arguments import check_count, check_range

Masks = NDArray[np.bool_]
Floats = NDArray[np.float64]
ATTEMPTS = 10  # at a block, in all of these codes
LARGEST_LOG_ASPECT = -math.log(0.3)  # of height to width, either way; in all of them
BLOCKS = 0x626C6F63  # "bloc" in ASCII; the seeds of views have the small number of a view here


def block_masks(
    wanted: NDArray[Any], grid: int, smallest: float, largest: float, generator: Generator, exact: bool = False
) -> Masks:
    """Masks blocks of random area, shape and place until there are enough patches; all masks at once.

    For one mask, while patches are wanted: a block's area is uniform from ``smallest`` to what is still wanted, the
    logarithm of height to width uniform, its sides are rounded and less than the grid, its place is uniform. It is
    taken if it masks a new patch and no more new ones than wanted. After ten failures in a row the mask stays as it is,
    so that it has a few patches less than wanted now and then.

    Args:
        wanted: [N], how many patches; a fraction is allowed.
        grid: patches along a side.
        smallest: area of the smallest block; BEiT and data2vec 16, DINOv2 4, iBOT (grid // 3)².
        largest: area of the largest block; infinity where only ``wanted`` limits it, as in iBOT.
        generator: of all draws.
        exact: fill up with single patches at random, so that each mask has ``wanted`` of them, whole numbers; the
            official codes do not.

    Returns:
        [N, grid²], true where masked; row by row.

    Raises:
        UserError: a grid or an area that is not above 0.
    """
    check_count("block_masks", grid=grid)
    check_range("block_masks", smallest=smallest)
    masks = np.zeros((len(wanted), grid, grid), dtype=bool)
    rows, failures = np.flatnonzero(wanted > 0), np.zeros(len(wanted), dtype=int)
    while len(rows):
        now = masks[rows]
        room = np.minimum(wanted[rows] - now.sum((1, 2)), largest)
        new = _blocks(room, grid, smallest, generator) & ~now
        added = new.sum((1, 2))
        taken = (added > 0) & (added <= room)
        masks[rows] = now | (new & taken[:, None, None])
        failures[rows] = np.where(taken, 0, failures[rows] + 1)
        rows = rows[(masks[rows].sum((1, 2)) < wanted[rows]) & (failures[rows] < ATTEMPTS)]
    flat: Masks = masks.reshape(len(wanted), grid**2)
    return _filled(flat, wanted, generator) if exact else flat


def _blocks(room: Floats, grid: int, smallest: float, generator: Generator) -> Masks:
    """Returns a block for each of ``room`` [n], [n, grid, grid]; none where it would reach from side to side."""
    draws = generator.random((4, len(room)))
    area = smallest + (room - smallest) * draws[0]
    aspect = np.exp((2 * draws[1] - 1) * LARGEST_LOG_ASPECT)
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    inside = (height < grid) & (width < grid)
    rows = _line(np.floor(draws[2] * (grid + 1 - height)), height, grid) & inside[:, None]
    columns = _line(np.floor(draws[3] * (grid + 1 - width)), width, grid)
    block: Masks = rows[:, :, None] & columns[:, None, :]
    return block


def _line(first: Floats, length: Floats, grid: int) -> Masks:
    """Returns [n, grid], true from ``first`` on for ``length`` places."""
    places = np.arange(grid)
    within: Masks = (places >= first[:, None]) & (places < (first + length)[:, None])
    return within


def _filled(masks: Masks, wanted: NDArray[Any], generator: Generator) -> Masks:
    """Adds single patches to ``masks`` [N, L] until there are ``wanted`` [N]."""
    noise = np.where(masks, 2.0, generator.random(masks.shape))
    rank = noise.argsort(axis=1).argsort(axis=1)
    filled: Masks = masks | (rank < (wanted - masks.sum(1))[:, None])
    return filled


def ratios_at_random(count: int, share: float, least: float, most: float, generator: Generator) -> Floats:
    """Returns ratios [count]: 0, or with probability ``share`` uniform from ``least`` to ``most``.

    As iBOT draws them, of whose two ``--pred_ratio`` one is 0 and the other has a width (loader.py, get_pred_ratio).
    """
    draws = generator.random((2, count))
    return np.where(draws[0] < share, least + (most - least) * draws[1], 0.0)


def ratios_in_steps(count: int, share: float, least: float, most: float, generator: Generator) -> Floats:
    """Returns ratios [count]: exactly ``share`` of them, rounded down, are not 0, and each has a step of its own.

    As DINOv2 draws them: steps divide ``least`` to ``most`` evenly, and the order is random (data/collate.py).
    """
    masked = int(count * share)
    ratios = np.zeros(count)
    ratios[:masked] = least + (most - least) * (np.arange(masked) + generator.random(masked)) / max(1, masked)
    return generator.permutation(ratios)


def most_in_steps(count: int, share: float, least: float, most: float, patches: int) -> int:
    """Returns how many of ``patches`` can be masked in all crops of :func:`ratios_in_steps` together."""
    masked = int(count * share)
    upper = least + (most - least) * np.arange(1, masked + 1) / max(1, masked)
    return int(np.floor(patches * upper + 1e-9).sum())


def of_this_process(progress: Progress, crops: int, images: int, draw: Callable[[int, Generator], Masks]) -> Masks:
    """Draws for the global batch, from (seed, step), and returns the rows of this process.

    Args:
        progress: where the run is.
        crops: masked crops of an image.
        images: B, on this process.
        draw: makes [n, L] for n crops with a generator.

    Returns:
        [crops, B, L].
    """
    total, first = distributed.world_size() * images, distributed.rank() * images
    generator = np.random.default_rng(derive_seed(progress.seed, progress.batch, BLOCKS))
    return draw(crops * total, generator).reshape(crops, total, -1)[:, first : first + images]

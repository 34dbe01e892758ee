"""Perceptual hash, equal or nearly so for similar images, and a search for all pairs that differ in few bits.

The hash holds the signs of the 64 lowest frequencies of the brightness (pHash, Zauner 2010, with signs instead of the
comparison with the median). Measured on CIFAR-10 (60,000 images, 1.8 billion pairs, 100 of each kind judged by eye): of
the 707 pairs within 6 bits about 4 % are not of one photograph, of the 637 at 7 or 8 bits about 28 %. Differences of
neighbouring pixels (dHash) put 1,433 pairs at 5 bits, of which most look nothing alike. Within 6 bits of an image are
99 % of its copies as JPEG of quality 30, in grey, of half or twice the size, brighter by 10 %; 94 % of those that are
brighter by 30 %; 53 % of those cut by a pixel on each side; 28 % of those moved by one; and none of its mirror images.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SIDE = 32  # pixels per side of the hashed brightness
BITS, BANDS = 64, 4  # four bands of 16 bits: a table with a row per value of a band stays small
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")
_ZERO = 0.01  # grey levels: a smaller frequency counts as zero, or rounding would decide its sign on each machine
_NOISE = 1.0  # grey levels: below it a sign comes from compression noise
_PLAIN = 32  # an image with fewer frequencies above the noise is too plain to compare
_CANDIDATES = 2**20  # pairs compared at a time, about 50 MB
_ONES = np.array([value.bit_count() for value in range(2**16)], np.uint8)

Hashes = NDArray[np.uint16]  # [N, 4]
Ints = NDArray[np.int64]
Pairs = tuple[Ints, Ints, Ints]  # first, second > first, and in how many bits they differ


def brightness(image: Tensor) -> Tensor:
    """Converts uint8 [C, h, w] to grey float32 [32, 32] in 0..255, antialiased; if not RGB, by the mean of channels."""
    weights = torch.tensor(_LUMINANCE if len(image) == 3 else [1 / len(image)] * len(image))
    grey = (image.float() * weights[:, None, None]).sum(0)
    fitted = F.interpolate(grey[None, None], (SIDE, SIDE), mode="bilinear", antialias=True)
    return fitted.view(SIDE, SIDE)


def perceptual_hash(grey: Tensor) -> tuple[Hashes, NDArray[np.bool_]]:
    """Hashes pictures [N, 32, 32] as :func:`brightness` returns them, and marks those too plain for a useful hash.

    The hash does not change with brightness and contrast. All flat pictures have the hash 0: leave them out of
    comparisons.
    """
    cosines, order = _cosines(), _order()
    strengths = (cosines @ grey.double() @ cosines.T).flatten(1)[:, order]
    bits = np.packbits((strengths > _ZERO).numpy(), axis=1)
    plain = (strengths.abs() > _NOISE).sum(1) < _PLAIN
    return bits.view(np.uint16), plain.numpy()


def _cosines() -> Tensor:
    """Returns the first 16 rows of the orthonormal DCT-II, float64 [16, 32]."""
    k, i = torch.arange(16, dtype=torch.float64)[:, None], torch.arange(SIDE, dtype=torch.float64)
    scale = torch.where(k == 0, 1.0, 2.0).div(SIDE).sqrt()
    return scale * torch.cos(torch.pi * (2 * i + 1) * k / (2 * SIDE))


def _order() -> Tensor:
    """Returns the places of the 64 lowest of 16 × 16 frequencies, mean excluded; every fourth goes to the same band."""
    vertical, horizontal = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    lowest = ((vertical + horizontal) * 16 + vertical).flatten().argsort()[1 : BITS + 1]
    return lowest.view(-1, BANDS).T.flatten()


def near_pairs(hashes: Hashes, distance: int) -> Iterator[Pairs]:
    """Yields every pair of ``hashes`` that differs in at most ``distance`` bits, once, in pieces; exact.

    In each such pair one of the four bands differs in at most a fourth of ``distance`` bits (multi-index hashing,
    Norouzi et al. 2012). So only pairs with such a band are compared: for a million random hashes and ``distance`` 6
    about 500 million, not 500,000 million. Memory: some bytes per hash, and one piece.
    """
    radius = distance // BANDS
    for band in range(BANDS):
        for first, second in _sharing(hashes[:, band], radius):
            bits = _ONES[hashes[first] ^ hashes[second]]  # [pairs, bands]
            total = bits.sum(1, dtype=np.int64)
            found = (total <= distance) & ~(bits[:, :band] <= radius).any(1)  # not found by an earlier band
            yield first[found], second[found], total[found]


def _sharing(keys: NDArray[np.uint16], radius: int) -> Iterator[tuple[Ints, Ints]]:
    """Yields the pairs of keys that differ in at most ``radius`` bits, each once."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(ordered, minlength=2**16))])
    for mask in _masks(radius):
        if mask:  # only the key without the mask's lowest bit searches, so that each pair comes once
            rows = np.flatnonzero(ordered & (mask & -mask) == 0)
            begin = starts[ordered[rows] ^ mask]
        else:
            rows = np.arange(len(keys))
            begin = rows + 1
        for one, other in _ranges(rows, begin, starts[(ordered[rows] ^ mask) + 1]):
            a, b = order[one], order[other]
            yield np.minimum(a, b), np.maximum(a, b)


def _masks(radius: int) -> list[int]:
    """Returns the 16-bit numbers with at most ``radius`` bits set."""
    chosen = (bits for count in range(radius + 1) for bits in itertools.combinations(range(16), count))
    return [sum(1 << bit for bit in bits) for bits in chosen]


def _ranges(rows: Ints, begin: Ints, end: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yields each row beside each number of its range begin..end - 1, in pieces."""
    counts = end - begin
    total = np.cumsum(counts)
    at = 0
    while at < len(rows):
        before = total[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(total, before + _CANDIDATES, "right")))
        piece = counts[at:stop]
        within = np.arange(piece.sum()) - np.repeat(np.cumsum(piece) - piece, piece)
        yield np.repeat(rows[at:stop], piece), np.repeat(begin[at:stop], piece) + within
        at = stop

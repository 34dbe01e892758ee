"""Reads every image of a split once, in worker processes; keeps a few dozen bytes per image, and sums over all."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unlabeled.data.decode import Header, read_header
from unlabeled.data.inspect.perceptual import SIDE, Hashes, Ints, brightness, perceptual_hash
from unlabeled.data.loaders import IgnoreSignals
from unlabeled.data.source import CorruptImage, HasEncodedImages, Source

_CHUNK = 128  # images per message of a worker; order and sums do not depend on the worker


@dataclass
class Survey:
    """Measurements of the M images that could be decoded, in the order of the source."""

    ids: Ints  # [M], positions in the source
    sizes: NDArray[np.int32]  # [M, 2], original height and width
    digests: NDArray[np.uint64]  # [M, 2], equal for equal decoded pixels
    hashes: Hashes  # [M, 4], similar for similar images
    plain: NDArray[np.bool_]  # [M], too plain for a useful hash
    kinds: Counter[str] = field(default_factory=Counter)  # "JPEG RGB" → how many
    stored_bytes: int = 0  # of all files
    decoded_bytes: int = 0  # of all images as uint8
    pixels: int = 0  # of all images
    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))  # of each channel, exact
    squares: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    corrupt: dict[int, str] = field(default_factory=dict)  # name and reason by position

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Returns mean and standard deviation of each channel over all pixels; 1 is white, the divisor is N, not N − 1.

        Computed from integer sums: exact except for the last rounding. NaN without an image.
        """
        if not self.pixels:
            return [float("nan")] * len(self.sums), [float("nan")] * len(self.sums)
        n = self.pixels
        pairs = [(int(total), int(square)) for total, square in zip(self.sums, self.squares, strict=True)]
        variances = [(n * square - total * total) / (255 * n) ** 2 for total, square in pairs]  # Python integers
        return [total / (255 * n) for total, _ in pairs], [variance**0.5 for variance in variances]


def survey(source: Source, positions: Ints, workers: int, title: str) -> Survey:
    """Reads the images at ``positions`` [n] of a source, once, with ``workers`` processes (0: in this one).

    ``title`` labels the progress bar, which is shown on a terminal only.
    """
    chunks = _Chunks(source, positions)
    workers = workers if len(chunks) > 1 else 0
    loader: DataLoader[Any] = DataLoader(
        chunks,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=IgnoreSignals(),
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # without it the workers' seeds are drawn from the global random state
    )
    return _merged(list(_with_bar(loader, len(chunks), title)))


class _Chunks(Dataset[Survey]):
    def __init__(self, source: Source, positions: Ints) -> None:
        self._source, self._positions = source, positions

    def __len__(self) -> int:
        return -(-len(self._positions) // _CHUNK)

    def __getitem__(self, chunk: int) -> Survey:
        found, corrupt = [], {}
        for index in self._positions[chunk * _CHUNK : (chunk + 1) * _CHUNK].tolist():
            try:
                found.append((index, _Measure(self._source, index)))
            except CorruptImage as error:
                corrupt[index] = str(error)
        return _gathered(found, corrupt)


class _Measure:
    """Measures one image; raises CorruptImage."""

    def __init__(self, source: Source, index: int) -> None:
        image = source.decode(index)
        self.header, self.stored_bytes = _stored(source, index, image)
        pixels = image.numpy()
        self.digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
        self.grey = brightness(image)
        self.pixels, self.decoded_bytes = image[0].numel(), image.nbytes
        flat = image.flatten(1).long()
        self.sums, self.squares = flat.sum(1).numpy(), flat.square().sum(1).numpy()


def _stored(source: Source, index: int, image: Tensor) -> tuple[Header, int]:
    """Returns the header and the length of the image's file; of the pixels where there is no file."""
    if not isinstance(source, HasEncodedImages):
        return Header("pixels in memory", "", *image.shape[1:]), image.nbytes
    data = source.encoded(index)
    return read_header(data), stored_bytes(data)


def stored_bytes(data: bytes | Path) -> int:
    """Returns the length in bytes of an encoded image or its file."""
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _gathered(found: list[tuple[int, _Measure]], corrupt: dict[int, str]) -> Survey:
    looks = [look for _, look in found]
    hashes, plain = perceptual_hash(torch.cat([torch.empty(0, SIDE, SIDE), *(look.grey[None] for look in looks)]))
    return Survey(
        np.array([index for index, _ in found], np.int64),
        np.array([look.header[2:] for look in looks], np.int32).reshape(-1, 2),
        np.frombuffer(b"".join(look.digest for look in looks), np.uint64).reshape(-1, 2),
        hashes,
        plain,
        Counter(" ".join(look.header[:2]).strip() for look in looks),
        sum(look.stored_bytes for look in looks),
        sum(look.decoded_bytes for look in looks),
        sum(look.pixels for look in looks),
        _sum_arrays([look.sums for look in looks]),
        _sum_arrays([look.squares for look in looks]),
        corrupt,
    )


def _sum_arrays(sums: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    total: NDArray[np.int64] = sum(sums[1:], sums[0]) if sums else np.zeros(3, np.int64)
    return total


def _as_is(found: Any) -> Any:
    return found


def _merged(parts: list[Survey]) -> Survey:
    return Survey(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.plain for part in parts]),
        sum((part.kinds for part in parts), Counter()),
        sum(part.stored_bytes for part in parts),
        sum(part.decoded_bytes for part in parts),
        sum(part.pixels for part in parts),
        _sum_arrays([part.sums for part in parts if part.pixels]),
        _sum_arrays([part.squares for part in parts if part.pixels]),
        {index: reason for part in parts for index, reason in part.corrupt.items()},
    )


def _with_bar(results: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    if not sys.stderr.isatty():
        return results
    from rich.console import Console
    from rich.progress import track

    return track(results, title, total, console=Console(stderr=True), transient=True)

"""Images held in memory as one uint8 array: sources that are born so, and any source decoded once."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unlabeled.data.decode import rgb
from unlabeled.data.source import CorruptImage, Source
from unlabeled.errors import UserError

_CHUNK_BYTES = 2**21  # decoded per message of a worker: hides its cost, and fits a container's 64 MB of /dev/shm


class ArraySource:
    """A source whose images are an array already: uint8 [N, 3, S, S], with int64 labels [N]."""

    def __init__(self, images: Tensor, labels: Tensor, classes: list[str], prefix: str) -> None:
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 3, images.shape[-1], images.shape[-1])
        self.images = images
        self.labels = labels
        self.classes = classes
        self.image_size = images.shape[-1]
        self._prefix = prefix

    def __len__(self) -> int:
        return len(self.images)

    def decode(self, index: int) -> Tensor:
        return self.images[index].clone()  # whoever writes to it must not write to the data

    def name(self, index: int) -> str:
        return f"{self._prefix} image {index}"


@dataclass
class DecodedSource:
    """All images of a source that can be decoded, in its order. M is their number."""

    images: Tensor  # uint8 [M, 3, S, S]
    ids: Tensor  # int64 [M], positions in the source
    labels: Tensor  # int64 [M], -1 where there is none
    classes: list[str]
    corrupt: list[str] = field(default_factory=list)  # what was left out: name and reason of each


def decode_all(source: Source, workers: int, progress: bool = True) -> DecodedSource:
    """Decodes every image once, with ``workers`` processes (0: in this one), into one array.

    An ArraySource is passed on without a copy. Corrupt images are left out and listed. The progress bar shows on a
    terminal only. Raises UserError when no image can be decoded.
    """
    if isinstance(source, ArraySource):
        return DecodedSource(source.images, torch.arange(len(source)), source.labels, source.classes)
    images = torch.empty(len(source), 3, source.image_size, source.image_size, dtype=torch.uint8)
    corrupt = _decode_into(images, source, workers, progress)
    if len(corrupt) == len(source):
        raise _nothing_decodes(source, next(iter(corrupt.values()), "there is none"))
    ids = torch.tensor([index for index in range(len(source)) if index not in corrupt])
    _close_gaps(images, ids)
    return DecodedSource(images[: len(ids)], ids, source.labels[ids], source.classes, list(corrupt.values()))


def bytes_needed(source: Source) -> int:
    """Memory that ``decode_all`` would allocate, in bytes: 0 for an ArraySource, which is in memory already."""
    return 0 if isinstance(source, ArraySource) else len(source) * 3 * source.image_size**2


def lazy_decode(source: Source, index: int) -> tuple[Tensor, int]:
    """Image ``index``, or the next one (cyclically) that is not corrupt: uint8 [3, S, S] and the index it came from.

    A pure function of the index, so a batch keeps its shape and a resumed run its samples. Raises UserError when no
    image can be decoded.
    """
    reason = "there is none"
    for step in range(len(source)):
        candidate = (index + step) % len(source)
        try:
            return source.decode(candidate), candidate
        except CorruptImage as error:
            reason = str(error)
    raise _nothing_decodes(source, reason)


def resized(images: Tensor, size: int) -> Tensor:
    """Images uint8 [N, 3, S, S] resized to [N, 3, size, size] as ``decode.rgb`` does; the same object if equal."""
    if images.shape[-1] == size:
        return images
    pictures = (Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images)
    return torch.stack([rgb(picture, size) for picture in pictures])


class _Chunks(Dataset[Any]):
    """Runs of images, decoded together: (uint8 [n, 3, S, S], name and reason of the corrupt ones by index)."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows = max(1, _CHUNK_BYTES // (3 * source.image_size**2))

    def __len__(self) -> int:
        return -(-len(self._source) // self._rows)

    def __getitem__(self, chunk: int) -> tuple[Tensor, dict[int, str]]:
        rows = range(chunk * self._rows, min((chunk + 1) * self._rows, len(self._source)))
        images = torch.zeros(len(rows), 3, self._source.image_size, self._source.image_size, dtype=torch.uint8)
        corrupt = {}
        for place, row in enumerate(rows):
            try:
                images[place] = self._source.decode(row)
            except CorruptImage as error:
                corrupt[row] = str(error)
        return images, corrupt


def _decode_into(images: Tensor, source: Source, workers: int, progress: bool) -> dict[int, str]:
    """Fills row i of ``images`` with image i; returns name and reason of the corrupt ones by index, ascending."""
    chunks = _Chunks(source)
    workers = workers if len(chunks) > 1 else 0
    # Processes, not threads: of a 32 pixel image most is Python, and two threads took longer than one (GIL).
    forked = "fork" if workers and sys.platform == "linux" else None  # the source is shared, not pickled
    own = torch.Generator()  # without it a DataLoader draws its workers' seeds from the global random state
    loader = DataLoader(chunks, None, num_workers=workers, multiprocessing_context=forked, generator=own)
    corrupt: dict[int, str] = {}
    row = 0
    for part, failures in _with_bar(loader, len(chunks), progress):
        images[row : row + len(part)] = part
        corrupt |= failures
        row += len(part)
    return corrupt


def _with_bar(results: Iterable[Any], total: int, progress: bool) -> Iterable[Any]:
    if not (progress and sys.stderr.isatty()):
        return results
    from rich.console import Console
    from rich.progress import track

    return track(results, "Decoding images", total, console=Console(stderr=True), transient=True)


def _close_gaps(images: Tensor, ids: Tensor) -> None:
    """Moves row ids[i] to row i, in place: a second array might not fit in memory."""
    for new, old in enumerate(ids.tolist()):
        if new != old:
            images[new] = images[old]


def _nothing_decodes(source: Source, reason: str) -> UserError:
    remedy = "point data.path=... at images that Pillow can read"
    return UserError(f"none of the {len(source)} images can be decoded ({reason}); {remedy}")

"""Images held in memory as uint8: sources that are arrays, and any source decoded once."""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unlabeled.data.decode import to_rgb
from unlabeled.data.decoding import channels_of
from unlabeled.data.source import CorruptImage, HasEncodedImages, Source
from unlabeled.errors import UserError

_CHUNK_BYTES = 2**21  # decoded bytes per message of a worker: few messages, within a container's 64 MB of /dev/shm
_LOOKED_AT = 8  # images decoded in advance to print warnings once
_SAMPLE = 64  # whole images decoded to estimate the memory of all

Decoded = Iterator[tuple[Tensor, list[torch.Size]]]  # the bytes of a chunk of images, uint8, and the shape of each


class ArraySource:
    """A source whose images are already an array: uint8 [N, 3, S, S], with int64 labels [N]."""

    square = True

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
        return self.images[index].clone()  # a copy, so that writing to it does not change the data

    def name(self, index: int) -> str:
        return f"{self._prefix} image {index}"


@dataclass
class DecodedSource:
    """The M images of a source that could be decoded, in its order."""

    images: Tensor | list[Tensor]  # uint8 [M, C, S, S]; of whole images M tensors, uint8 [C, h, w]
    ids: Tensor  # int64 [M], positions in the source
    labels: Tensor  # int64 [M], -1 where there is none
    classes: list[str]
    corrupt: list[str] = field(default_factory=list)  # name and reason of each image that was left out


def decode_all(source: Source, workers: int, progress: bool = True) -> DecodedSource:
    """Decodes every image once, with ``workers`` processes (0: in this one): square ones into one array.

    An ArraySource is used without a copy. Corrupt images are left out and listed. The progress bar shows on a
    terminal only. Raises UserError when no image can be decoded.
    """
    if isinstance(source, ArraySource):
        return DecodedSource(source.images, torch.arange(len(source)), source.labels, source.classes)
    corrupt: dict[int, str] = {}
    decoded = _decoded(source, workers, progress, corrupt)
    images = _as_array(decoded, source) if source.square else _as_list(decoded)
    if not len(images):
        raise _nothing_decodes(source, next(iter(corrupt.values()), "there is none"))
    ids = torch.tensor([index for index in range(len(source)) if index not in corrupt])
    return DecodedSource(images, ids, source.labels[ids], source.classes, list(corrupt.values()))


def bytes_needed(source: Source) -> int:
    """Returns the bytes that ``decode_all`` would allocate: 0 for an ArraySource, which is in memory already.

    For whole images this is an estimate from 64 evenly spaced ones; corrupt ones do not count in the mean.
    """
    if isinstance(source, ArraySource):
        return 0
    return int(len(source) * (_most_bytes(source) if source.square else _mean_bytes(source)))


def decode_some(source: Source) -> None:
    """Decodes a few images in this process, so that warnings appear once and not from each worker, or never."""
    if isinstance(source, HasEncodedImages):
        for number in range(min(_LOOKED_AT, len(source))):
            with suppress(CorruptImage):
                source.decode(number * len(source) // min(_LOOKED_AT, len(source)))


def decode_or_next(source: Source, index: int) -> tuple[Tensor, int]:
    """Decodes image ``index``, or the next intact one (cyclically): uint8 [3, h, w], and the index it came from.

    It depends only on the index, so that a batch keeps its shape and a resumed run its samples. Raises UserError when
    no image can be decoded.
    """
    reason = "there is none"
    for step in range(len(source)):
        candidate = (index + step) % len(source)
        try:
            return source.decode(candidate), candidate
        except CorruptImage as error:
            reason = str(error)
    raise _nothing_decodes(source, reason)


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resizes images uint8 [N, 3, S, S] to [N, 3, size, size] as ``decode.to_rgb`` does; the same object if equal."""
    if images.shape[-1] == size:
        return images
    pictures = (Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images)
    return torch.stack([to_rgb(picture, size) for picture in pictures])


def _most_bytes(source: Source) -> int:
    """Returns the largest number of bytes that one image can take."""
    return channels_of(source) * source.image_size**2 * (1 if source.square else 2)


def _mean_bytes(source: Source) -> float:
    """Returns the mean bytes of one image, from a sample; the largest possible if none of the sample can be decoded."""
    count, found = min(_SAMPLE, len(source)), []
    for number in range(count):
        with suppress(CorruptImage):
            found.append(source.decode(number * len(source) // count).nbytes)
    return sum(found) / len(found) if found else _most_bytes(source)


class _Chunks(Dataset[Any]):
    """Decodes chunks of images: returns their bytes, shapes, and name and reason of each corrupt one by index."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows = max(1, _CHUNK_BYTES // _most_bytes(source))

    def __len__(self) -> int:
        return -(-len(self._source) // self._rows)

    def __getitem__(self, chunk: int) -> tuple[Tensor, list[torch.Size], dict[int, str]]:
        images, corrupt = [torch.empty(0, dtype=torch.uint8)], {}
        for row in range(chunk * self._rows, min((chunk + 1) * self._rows, len(self._source))):
            try:
                images.append(self._source.decode(row))
            except CorruptImage as error:
                corrupt[row] = str(error)
        # One tensor: each tensor in a message takes a file descriptor, and their number is limited.
        return torch.cat([image.flatten() for image in images]), [image.shape for image in images[1:]], corrupt


def _decoded(source: Source, workers: int, progress: bool, corrupt: dict[int, str]) -> Decoded:
    """Yields the images in order; adds name and reason of the corrupt ones to ``corrupt``."""
    chunks = _Chunks(source)
    workers = workers if len(chunks) > 1 else 0
    # Processes, not threads: small images are mostly Python code, and two threads took longer than one (GIL).
    forked = "fork" if workers and sys.platform == "linux" else None  # the source is shared, not pickled
    own = torch.Generator()  # without it a DataLoader draws its workers' seeds from the global random state
    loader = DataLoader(chunks, None, num_workers=workers, multiprocessing_context=forked, generator=own)
    for pixels, shapes, failures in _with_bar(loader, len(chunks), progress):
        corrupt.update(failures)
        yield pixels, shapes


def _as_array(decoded: Decoded, source: Source) -> Tensor:
    """Puts square images into one tensor; the memory at its end that corrupt ones leave free is never touched."""
    array = torch.empty(len(source), channels_of(source), source.image_size, source.image_size, dtype=torch.uint8)
    count = 0
    for pixels, shapes in decoded:
        array[count : count + len(shapes)] = pixels.view(-1, *array.shape[1:])
        count += len(shapes)
    return array[:count]


def _as_list(decoded: Decoded) -> list[Tensor]:
    """Copies each image out of the worker's memory, which is scarce: one image would keep a whole message there."""
    images: list[Tensor] = []
    for pixels, shapes in decoded:
        parts = torch.split(pixels, [math.prod(shape) for shape in shapes])
        images += [part.view(shape).clone() for part, shape in zip(parts, shapes, strict=True)]
    return images


def _with_bar(results: Iterable[Any], total: int, progress: bool) -> Iterable[Any]:
    if not (progress and sys.stderr.isatty()):
        return results
    from rich.console import Console
    from rich.progress import track

    return track(results, "Decoding images", total, console=Console(stderr=True), transient=True)


def _nothing_decodes(source: Source, reason: str) -> UserError:
    remedy = "point data.path=... at images that Pillow can read"
    return UserError(f"none of the {len(source)} images can be decoded ({reason}); {remedy}")

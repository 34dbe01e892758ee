"""What a split holds, as a short text that changes with it: what kept features are found by. No image is decoded."""

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from unlabeled.data.files import stamps
from unlabeled.data.memory import ArraySource
from unlabeled.data.source import Source


@runtime_checkable
class Filed(Protocol):
    """What a source has besides whose images lie in files."""

    def files(self) -> list[str]:
        """Paths or URLs of all files that images come from."""
        ...


def fingerprint(source: Source) -> str | None:
    """SHA-256 of labels, of how images are decoded, and of the images' bytes or the files' paths, sizes and times.

    None where nothing tells whether images have changed: a source of somebody else's, or a file that is gone.
    """
    digest = hashlib.sha256(f"{len(source)} {source.image_size} {source.square} {source.classes}\n".encode())
    digest.update(_bytes(source.labels))
    if isinstance(source, ArraySource):
        digest.update(_bytes(source.images))
        return digest.hexdigest()
    if not isinstance(source, Filed):
        return None
    try:
        found = stamps(source.files())
    except OSError:
        return None
    for path, size, time in found:
        where = path if "://" in path else Path(path).absolute()
        digest.update(f"{where} {size} {time}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    return values.contiguous().numpy().data.cast("B") if values.numel() else memoryview(b"")

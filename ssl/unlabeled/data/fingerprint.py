"""Fingerprint of a split: a short text that changes when its contents change. No image is decoded for it."""

import hashlib
import os
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from unlabeled.data.decoding import RGB, Decoding
from unlabeled.data.memory import ArraySource
from unlabeled.data.source import Source, shared_folder
from unlabeled.data.sources.files import file_stamps, is_url


@runtime_checkable
class HasFiles(Protocol):
    """Protocol of a source whose images lie in files."""

    def files(self) -> list[str]:
        """Returns the paths or URLs of all files that images come from."""
        ...

    def within(self) -> str:
        """Says which part of these files is used: a column, or byte ranges; "" where images are whole files."""
        ...


def fingerprint(source: Source, moved: bool = False) -> str | None:
    """Returns the SHA-256 of labels, of decoding settings, and of the images' bytes or what is known of their files.

    Args:
        source: the split.
        moved: True: a copy in another folder has the same fingerprint, which uses sizes and paths relative to the
            common folder. False: it also uses location and time of writing; stored features are found by this one.

    Returns:
        None where changes cannot be detected: a custom source that does not list its files, or a missing file.
    """
    digest = hashlib.sha256(f"{len(source)} {source.image_size} {source.square} {source.classes}\n".encode())
    digest.update(_bytes(source.labels))
    digest.update(_settings(getattr(source, "decoding", RGB)).encode())
    if isinstance(source, ArraySource):
        digest.update(_bytes(source.images))
        return digest.hexdigest()
    if not isinstance(source, HasFiles):
        return None
    try:
        found = file_stamps(source.files())
    except OSError:
        return None
    digest.update(f"{source.within()}\n".encode())
    shared = shared_folder([path for path, _, _ in found]) if moved else ""
    for path, size, time in found:
        where = path.removeprefix(shared) if moved else path if is_url(path) else os.path.abspath(path)
        digest.update(f"{where} {size} {'' if moved else time}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _settings(decoding: Decoding) -> str:
    """Describes the settings; "" for those that were always in effect, so that stored features are found again."""
    told = f"{replace(decoding, decode='pillow')}\n" if replace(decoding, decode="pillow") != RGB else ""
    return told + ("" if decoding.decoder == "pillow" else f"{decoding.decoder}\n")


def _bytes(values: Tensor) -> memoryview:
    return values.contiguous().numpy().data.cast("B") if values.numel() else memoryview(b"")

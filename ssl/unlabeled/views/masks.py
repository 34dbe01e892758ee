"""Stores the foreground masks of a whole data set in one file, one bit per pixel, read directly from disk."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.core.writing import save_tensors
from unlabeled.data.source import Source, common_folder
from unlabeled.errors import UserError

FORMAT = "unlabeled masks 1"
MAKE = "unlabeled saliency data=…"


@dataclass
class Masks:
    """Holds one mask per image of a source, by its id. N is their number."""

    packed: Tensor  # uint8 [N, ceil(size²/8)], see pack
    coverage: Tensor  # float32 [N], share of foreground
    size: int  # height and width, pixels
    samples: str  # SHA-256 of the images' names, see samples_hash
    classes: list[str]  # of the source, if it has class names
    data: str  # the data set in words
    settings: dict[str, Any]  # how the masks were made

    def save(self, path: Path) -> None:
        """Writes the file atomically; it can be read with ``torch.load(weights_only=True, mmap=True)``."""
        save_tensors(path, {"format": FORMAT, **vars(self)})

    def rows(self, ids: Tensor, device: torch.device) -> Tensor:
        """Returns the masks of ``ids`` int64 [n] as bool [n, size, size]; only their bits are copied to the device."""
        return unpack(self.packed[ids].to(device), self.size)

    def require(self, source: Source, path: str) -> None:
        """Raises UserError unless these are the masks of ``source``; ``path`` is for the message."""
        both_named = self.classes and source.classes  # names of parquet rows are the same in all data sets
        if self.samples != samples_hash(source) or (both_named and self.classes != source.classes):
            raise UserError(
                f"views.masks={path} was made for other data ({self.data}), not for the {len(source):,} training "
                f"images of this run; make their own: {MAKE} out=…, or give views.masks=null"
            )
        square = self.settings.get("square", True)  # all were square before whole images were supported
        if square != source.square:
            given, wanted = str(square).lower(), str(source.square).lower()
            raise UserError(
                f"views.masks={path} was made with data.square={given}, this run has data.square={wanted} and so other "
                f"frames; give data.square={given}, or make new masks: {MAKE} data.square={wanted} out=…"
            )


def open_masks(path: str) -> Masks:
    """Opens the masks in a file, memory-mapped.

    Raises:
        UserError: the file does not exist, or holds something else.
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        raise UserError(f"views.masks={path}: no such file; make it: {MAKE} out={path}, or give views.masks=null")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any kind of error: the file may be anything
        raise UserError(f"views.masks={path}: not a file of masks, or cut short; make it again: {MAKE}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"views.masks={path}: not a file of masks; {MAKE} out=… makes one")
    if not _is_whole(content):
        raise UserError(f"views.masks={path}: damaged, its values do not fit together; make it again: {MAKE}")
    return Masks(**content)


def _is_whole(content: dict[str, Any]) -> bool:
    """Returns whether these are the fields of :class:`Masks`, with the right types and sizes."""
    kinds = {"packed": Tensor, "coverage": Tensor, "size": int, "samples": str, "classes": list, "data": str}
    if set(content) != {*kinds, "settings"} or not isinstance(content["settings"], dict):
        return False
    if not all(isinstance(content[name], kind) for name, kind in kinds.items()):
        return False
    packed, coverage, size = content["packed"], content["coverage"], content["size"]
    fits = packed.dtype == torch.uint8 and packed.shape == (len(packed), -(-(size**2) // 8))
    return size > 0 and bool(fits) and coverage.is_floating_point() and coverage.shape == (len(packed),)


def pack(masks: Tensor) -> Tensor:
    """Packs bool [B, S, S] into uint8 [B, ceil(S²/8)]: pixels in rows, the first in the lowest bit, padded with 0."""
    bits = masks.flatten(1)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    return (bits << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


def unpack(packed: Tensor, size: int) -> Tensor:
    """Unpacks uint8 [B, ceil(size²/8)] to bool [B, size, size], the inverse of :func:`pack`."""
    bits: Tensor = packed[:, :, None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1
    return bits.flatten(1)[:, : size**2].view(-1, size, size).bool()


def samples_hash(source: Source) -> str:
    """Returns the SHA-256 of the number of images and their names in order, relative to their common folder.

    The data may be moved, e.g. to a cluster's local disk, without making masks again. Takes some seconds for a million
    images.
    """
    folder = common_folder(source)
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index).removeprefix(folder)) + b"\n")
    return digest.hexdigest()

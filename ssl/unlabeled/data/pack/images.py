"""How one image of a data set is stored in a shard: its name, and its bytes as JPEG, PNG or plain pixels."""

import io
import os
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from unlabeled.data.jpeg.header import jpeg_header, read_jpeg
from unlabeled.data.lists.pictures import readable_extensions
from unlabeled.data.source import CorruptImage, HasEncodedImages, Source

Encoding = Literal["jpeg", "png", "raw"]
EXTENSIONS: dict[Encoding, str] = {"jpeg": "jpg", "png": "png", "raw": "ppm"}  # raw: PPM, a line and the pixels
_PNG_LEVEL = 3  # of 9: a third of the time of the default, 6, for files 3 % larger


def encode(source: Source, index: int, encoding: Encoding, quality: int) -> bytes:
    """Returns image ``index`` as it is stored. Raises CorruptImage.

    PNG and raw keep every bit of :meth:`Source.decode`. A JPEG that decoding would not resize is stored as it is.
    """
    pixels = source.decode(index)  # first: what cannot be decoded is not stored
    if encoding == "jpeg" and (kept := _as_it_is(source, index, pixels)) is not None:
        return kept
    image, stream = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())), io.BytesIO()
    settings = {"jpeg": {"quality": quality}, "png": {"compress_level": _PNG_LEVEL}, "raw": {}}[encoding]
    image.save(stream, {"jpeg": "JPEG", "png": "PNG", "raw": "PPM"}[encoding], **settings)
    return stream.getvalue()


def member_name(name: str, index: int, encoding: Encoding) -> str:
    """Returns the name of an image in its shard: its position, its own name without extension, the new extension.

    The key of a WebDataset record ends at the first dot, so that dots in a name become ``%2E``. A position of its own
    keeps names apart that differ in their extension alone.
    """
    stem, extension = os.path.splitext(name)
    stem = stem if extension.lower() in _extensions() else name
    stem = stem.replace("%", "%25").replace(".", "%2E").strip("/")
    return f"{index:09d}/{stem or 'image'}.{EXTENSIONS[encoding]}"


_extensions = cache(readable_extensions)


def _as_it_is(source: Source, index: int, pixels: Tensor) -> bytes | None:
    """The bytes of a JPEG whose pixels decoding leaves alone; None for another file."""
    if not isinstance(source, HasEncodedImages):
        return None
    stored = source.encoded(index)
    try:
        data = read_jpeg(stored) if isinstance(stored, Path) else stored
    except OSError as error:
        raise CorruptImage(f"{source.name(index)}: {error.strerror}") from error
    header = None if data is None else jpeg_header(data)
    if header is None or sorted((header.height, header.width)) != sorted(pixels.shape[1:]):
        return None
    return data

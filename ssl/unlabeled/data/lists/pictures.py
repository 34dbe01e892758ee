"""Recognises image files: by the extension, and by the first bytes where a name has no extension."""

import io
import os
from pathlib import Path

from PIL import Image

_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow opens but cannot decode alone


def readable_extensions() -> set[str]:
    """Returns the extensions of files that Pillow alone can decode, in lower case and with their dot."""
    readable = Image.registered_extensions().items()
    return {extension for extension, kind in readable if kind in Image.OPEN and kind not in _NOT_PICTURES}


def extension_of(name: str) -> str:
    """Returns the extension of a name in lower case and with its dot; "" where there is none."""
    return os.path.splitext(name)[1].lower()


def looks_like_image(data: bytes | Path) -> bool:
    """Checks whether Pillow recognises the first bytes as an image; no pixel is decoded."""
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            return image.format not in _NOT_PICTURES
    except Exception:  # Pillow's plugins raise many kinds of errors on damaged data
        return False

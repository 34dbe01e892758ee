"""Opens and recognises image files: by the extension, and by the first bytes where a name has no extension."""

import io
import os
from pathlib import Path

from PIL import Image

_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow opens but cannot decode alone


def open_picture(data: bytes | Path) -> Image.Image:
    """Opens an encoded image with Pillow, which reads its format from the content and not from the name.

    Formats that Pillow does not decode by itself are refused: it would run Ghostscript on a PostScript file.

    Raises:
        PIL.UnidentifiedImageError: not an image, or one of such a format.
    """
    Image.init()  # else Pillow knows only its five most frequent formats
    formats = [kind for kind in Image.ID if kind not in _NOT_PICTURES]
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats)


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
        with open_picture(data):
            return True
    except Exception:  # Pillow's plugins raise many kinds of errors on damaged data
        return False

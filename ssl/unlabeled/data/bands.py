"""Reads images of any number of bands: multispectral TIFFs, grey scans, and alpha as a channel of its own."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unlabeled.core.reading import open_regular
from unlabeled.data.decoding import Decoding
from unlabeled.data.lists.pictures import open_picture
from unlabeled.errors import UserError

Values = npt.NDArray[Any]

DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners have
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_ORIENTATION, _SAMPLES, _EXTRA, _PHOTOMETRIC, _DEPTH = 274, 277, 338, 262, 258  # TIFF's tags
_WHITE_IS_ZERO, _PALETTE, _CMYK = 0, 3, 5  # of the tag of photometric interpretation


def is_tiff(data: bytes | Path) -> bool:
    """Checks whether the data begin with the signature of a TIFF file."""
    if isinstance(data, bytes):
        return data[:4] in _TIFF
    with open_regular(data) as file:
        return file.read(4) in _TIFF


def extra_bands(image: Image.Image) -> int:
    """Returns how many bands of a TIFF Pillow drops when it converts to RGB, alpha not counted; 0 for other files."""
    tags: Any = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or tags.get(_PHOTOMETRIC) == _CMYK:
        return 0
    samples, extra = int(tags.get(_SAMPLES, 1)), tags.get(_EXTRA, ())
    alpha = sum(kind in (1, 2) for kind in (extra if isinstance(extra, tuple) else (extra,)))
    return max(0, samples - max(3, alpha) - alpha) if samples > 3 else 0


def hidden_bands(image: Image.Image) -> bool:
    """Checks whether Pillow reads a TIFF of several bands (of floats or deep integers) as an image of a single band."""
    tags: Any = getattr(image, "tag_v2", None)
    several = image.format == "TIFF" and tags is not None and int(tags.get(_SAMPLES, 1)) > 1
    return several and len(image.getbands()) == 1 and image.mode != "P"


def deep_colours(image: Image.Image) -> bool:
    """Checks whether Pillow drops the lower bits of deep colour images, e.g. RGB; call it before loading the image."""
    tiles: Any = getattr(image, "tile", ())
    modes = [part for tile in tiles for part in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    return image.mode in ("RGB", "RGBA", "LA") and any(isinstance(mode, str) and ";16" in mode for mode in modes)


def read_bands(data: bytes | Path, decoding: Decoding) -> tuple[Values, int]:
    """Returns the bands [C, H, W] of a file as it holds them, C = ``decoding.channels``, and its EXIF orientation.

    Raises:
        UserError: the file needs tifffile, which is not installed.
        ValueError: the file has another number of bands, or more pixels than allowed.
    """
    values, orientation = _of_tiff(data, decoding) if is_tiff(data) else _of_pillow(data, decoding.channels)
    if len(values) == 1 and decoding.channels == 3:  # grey of a kind that Pillow does not read, such as float64
        return values.repeat(3, axis=0), orientation
    if len(values) != decoding.channels:
        raise ValueError(f"{len(values)} bands, and data.channels={decoding.channels}")
    return values, orientation


def _of_pillow(data: bytes | Path, channels: int) -> tuple[Values, int]:
    with open_picture(data) as opened:
        image: Image.Image = opened
        if deep_colours(image):
            raise ValueError("several bands of 16 bits, of which Pillow keeps 8: save it as TIFF")
        image.load()
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        if channels == 1 and image.mode in ("RGB", "RGBA", "P", "LA", "1", "CMYK", "YCbCr"):
            image = image.convert("L")
        elif channels == 4 and image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        values = np.asarray(image)
    return (values[None] if values.ndim == 2 else values.transpose(2, 0, 1)), orientation


def _of_tiff(data: bytes | Path, decoding: Decoding) -> tuple[Values, int]:
    tifffile = _tifffile()
    with tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
        page = file.pages[0]
        pixels = max(each.imagelength * each.imagewidth for each in file.pages)
        if pixels > decoding.max_pixels:
            raise ValueError(f"{pixels:,} pixels are more than data.max_pixels={decoding.max_pixels}")
        if page.photometric == _PALETTE:
            return _of_pillow(data, decoding.channels)  # the values are numbers of colours
        orientation = page.tags[_ORIENTATION].value if _ORIENTATION in page.tags else 1
        if page.samplesperpixel == 1 and len(file.pages) == decoding.channels > 1:  # a band is a page
            return np.stack([each.asarray().squeeze() for each in file.pages]), int(orientation)
        values = page.asarray().reshape(page.shape)
        axes = page.axes.replace("C", "S")
        if page.photometric == _WHITE_IS_ZERO and values.dtype in (np.uint8, bool):
            values = ~values  # as Pillow reads it
    if "S" not in axes:
        return values.reshape(1, *values.shape[-2:]), int(orientation)
    return np.moveaxis(values, axes.index("S"), 0), int(orientation)


def tiff_size(data: bytes | Path) -> tuple[str, int, int]:
    """Returns the type of the values, height and width of a TIFF, as it is stored; reads no pixels."""
    with _tifffile().TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
        page = file.pages[0]
        return str(page.dtype), int(page.imagelength), int(page.imagewidth)


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise UserError("tifffile reads this TIFF and is not installed: pip install 'unlabeled[tiff]'") from error
    return tifffile


def as_bytes(values: Values, bits: int | str) -> Values:
    """Scales whole numbers or floats to uint8 of the same shape, black to white; uint8 input is unchanged.

    Whole numbers: 0 … 2^bits − 1. Floats, and signed numbers below 0: the first of 0..1 (floats alone), 0..255 and
    0..65535 that holds all values, else their own minimum..maximum over all bands; values that are not finite become 0.

    Raises:
        ValueError: a value above 2^bits − 1.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = value_range(values, bits)
    spread = np.where(np.isfinite(values), values, 0).astype(np.float64) - low
    return np.rint(spread * 255 / (high - low)).astype(np.uint8)


def value_range(values: Values, bits: int | str) -> tuple[float, float]:
    """Returns the values of black and white. Raises ValueError at a value above the white that the user chose."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype.kind == "f" or lowest < 0:
        usual = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        white = next((white for white in usual if lowest >= 0 and highest <= white), None)
        return (0.0, white) if white is not None else (lowest, highest if highest > lowest else lowest + 1)
    if bits == "auto":
        bits = next((depth for depth in DEPTHS if highest < 2**depth), values.dtype.itemsize * 8)
    elif bits == 8 and values.dtype.itemsize > 2:  # as to_rgb: no camera has 32 bits
        white = next((white for white in (255.0, 65535.0) if highest <= white), None)
        return (0.0, white) if white is not None else (lowest, highest if highest > lowest else lowest + 1)
    elif bits == 8:
        bits = 8 * values.dtype.itemsize  # the default: white is the largest value of the type
    white = 2.0 ** int(bits) - 1
    if highest > white:
        raise ValueError(f"a value of {highest:.0f} is above {white:.0f}, which is white by data.bits={bits}")
    return 0.0, white

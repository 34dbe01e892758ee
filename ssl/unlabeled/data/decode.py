"""Decodes any image file that Pillow can read to a uint8 tensor: the same pixels on every machine, in every worker."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unlabeled.core.reading import NotRegular, refuse_fault_of_machine, require_regular
from unlabeled.data.bands import (
    as_bytes,
    deep_colours,
    extra_bands,
    hidden_bands,
    is_tiff,
    read_bands,
    tiff_size,
    value_range,
)
from unlabeled.data.decoding import MOST_PIXELS, RGB, Bits, Decoding, warn_once
from unlabeled.data.jpeg.header import jpeg_header, read_jpeg
from unlabeled.data.jpeg.pixels import check_process, decode_jpeg
from unlabeled.data.lists.pictures import open_picture
from unlabeled.data.source import CorruptImage
from unlabeled.errors import UserError

EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_WHOLE = 2  # factor of reduction up to which torchvision's decoder of all pixels is the faster one
_FROM_RIGHT, _FROM_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)  # EXIF: first column right, first row at the bottom

# Pillow warns at half the number of pixels that it refuses; data.max_pixels is the only limit here, with its own error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_allowed = {"pixels": MOST_PIXELS}  # Pillow's limit as set in this process

Region = tuple[float, float, float, float]  # left, top, width and height, in pixels


def to_rgb(
    image: Image.Image, size: int, square: bool = True, shown: tuple[float, float] | None = None, bits: Bits = 8
) -> Tensor:
    """Converts the image to upright RGB: uint8 [3, size, size], or [3, h, w] where ``square`` is false.

    Colours are those of ``image.convert("RGB")``, as in torchvision's loaders: alpha is dropped, not composited.
    Deep grey images, which ``convert`` clips at 255, keep their brightness instead:

    - ``I;16``: 0..65535 → 0..255 (divided by 257), or with ``bits`` 0..2^bits − 1, see
      :class:`unlabeled.data.decoding.Decoding`.
    - ``I``: the first of 0..255 and 0..65535 that holds all values of the image, else its own minimum..maximum.
    - ``F``: the first of 0..1, 0..255 and 0..65535 that holds all values, else its own minimum..maximum;
      values that are not finite count as 0.

    Square: an image of another size is resized (bicubic, antialiased) until its shorter side is ``size``, then cropped
    in the centre, like torchvision's ``Resize`` and ``CenterCrop``; an image of ``size`` × ``size`` keeps every bit.
    Whole: the image is reduced in the same way, until its shorter side is at most ``size`` and its longer side at most
    twice that. A smaller image keeps every bit; no image is enlarged.

    ``shown`` is the width and height of the original picture in pixels of an image that was reduced during decoding.
    They are fractions, as the last column and row may extend beyond the picture. None: the whole image.
    """
    image.load()  # must come before reading the orientation: Pillow rotates TIFF files upright while it loads them
    (width, height), orientation = shown or image.size, _orientation(image)
    image = _colours(image, bits)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        width, height = (height, width) if orientation >= 5 else (width, height)
    left = image.width - width if orientation in _FROM_RIGHT else 0
    top = image.height - height if orientation in _FROM_BOTTOM else 0
    image = (_square if square else _whole)(image, size, (left, top, width, height))
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())  # numpy takes half the time of torch at 32 pixels


def decode_bytes(data: bytes | Path, name: str, size: int, square: bool = True, decoding: Decoding = RGB) -> Tensor:
    """Decodes one encoded image, given as bytes or as a file, as :func:`to_rgb` does; other channel counts likewise.

    A TIFF that Pillow cannot read, of floats or of many bands, is read by tifffile, where that is installed.

    Pillow decodes a JPEG with at least four times the needed pixels along each side at 1/2, 1/4 or 1/8, but never below
    twice the needed size: ``benchmarks/results/scaled_decode.md`` shows the time saved and the differences.

    With ``decoding.decode=torchvision`` libjpeg-turbo decodes JPEGs without CMYK, and torch resizes them: 2.3 times as
    fast, see ``benchmarks/results/jpeg_decode.md``. What it refuses Pillow decodes, or names as corrupt, and also what
    Pillow decodes at 1/4 or 1/8, as that is faster. ``cuda`` is the same with nvJPEG, for a process without workers.

    Raises CorruptImage, in one line with ``name`` and the reason, for damaged data; UserError where other channels are
    asked for and tifffile is not installed.
    """
    _set_pixel_limit(decoding.max_pixels)
    try:
        if not isinstance(data, bytes):
            require_regular(data)  # opening a FIFO would wait for ever
        if decoding.channels != 3:
            return _decode_bands(data, name, size, square, decoding)
        try:
            if decoding.decoder != "pillow" and (fast := _fast(data, size, square, decoding)) is not None:
                return fast
            with open_picture(data) as image:
                deep = deep_colours(image)
                if not (deep and decoding.bits != 8) and not hidden_bands(image):
                    _warn(image, name, decoding, deep)
                    return to_rgb(image, size, square, _reduce(image, size), decoding.bits)
        except UnidentifiedImageError:
            if not is_tiff(data):
                raise
        return _decode_bands(data, name, size, square, decoding)
    except UserError as error:
        if decoding.channels != 3:
            raise
        raise CorruptImage(f"{name}: {error}") from error
    except Exception as error:  # on damaged data Pillow's plugins raise nearly anything: struct.error, KeyError, …
        refuse_fault_of_machine(name, error)
        raise CorruptImage(" ".join(f"{name}: {_reason(data, error)}".split())) from error


def _fast(data: bytes | Path, size: int, square: bool, decoding: Decoding) -> Tensor | None:
    """Decodes a JPEG without Pillow; None for what it is not meant for."""
    encoded = data if isinstance(data, bytes) else read_jpeg(data)
    header = None if encoded is None else jpeg_header(encoded)
    if encoded is None or header is None or header.width * header.height >= decoding.max_pixels:
        return None
    if _factor(header.width, header.height, size) > _WHOLE:
        return None
    if decoding.decoder == "cuda":
        check_process()
    orientation = _orientation_of(encoded) if header.may_turn else 1
    return decode_jpeg(encoded, orientation, size, square, "cuda" if decoding.decoder == "cuda" else "cpu")


class Header(NamedTuple):
    """Facts in the header of an encoded image, known before it is decoded."""

    format: str  # Pillow's name: JPEG, PNG, …
    mode: str  # Pillow's: RGB, L, RGBA, P, CMYK, I;16, …
    height: int  # pixels, after the rotation that EXIF asks for
    width: int


def _set_pixel_limit(pixels: int) -> None:
    """Sets Pillow's pixel limit; Pillow itself refuses an image only at twice its limit."""
    if pixels != _allowed["pixels"]:
        Image.MAX_IMAGE_PIXELS, _allowed["pixels"] = pixels // 2, pixels


def _decode_bands(data: bytes | Path, name: str, size: int, square: bool, decoding: Decoding) -> Tensor:
    """Resizes and crops each band separately, as :func:`to_rgb` does with colours."""
    values, orientation = read_bands(data, decoding)
    if decoding.bits == 8 and values.dtype == np.uint16:
        _warn_of_dark(name, int(values.max(initial=0)), 4096)
    pictures = [Image.fromarray(band) for band in np.ascontiguousarray(as_bytes(values, decoding.bits))]
    if orientation in _UPRIGHT:
        pictures = [picture.transpose(_UPRIGHT[orientation]) for picture in pictures]
    fit = _square if square else _whole
    fitted = [fit(picture, size, (0, 0, picture.width, picture.height)) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in fitted]))


def _warn(image: Image.Image, name: str, decoding: Decoding, deep: bool) -> None:
    """Warns once, at the first file that loses information which a key could keep."""
    if bands := extra_bands(image):
        said = f"{name}: {3 + bands} bands are cut to three; data.channels={3 + bands} keeps them"
        warn_once("bands", f"{said} (and with the same number of entries views.mean and views.std)")
    if decoding.bits == 8 and (deep or image.mode.startswith("I;16")):
        image.load()
        _warn_of_dark(name, int(np.asarray(image).max()), 16 if deep else 4096)


def _warn_of_dark(name: str, highest: int, of_12_bits: int) -> None:
    if 0 < highest < of_12_bits:
        said = f"{name}: of 16 bits at most 12 are used, so it comes out nearly black"
        warn_once("bits", f"{said}; data.bits=12 says what white is, auto takes it from each image")


def read_header(data: bytes | Path) -> Header:
    """Reads the header of an image that :func:`decode_bytes` has decoded; reads no pixels."""
    try:
        return _header(data)
    except UnidentifiedImageError:  # many bands, or values of another kind than Pillow knows
        if not is_tiff(data):
            raise
        return Header("TIFF", *tiff_size(data))


def _header(data: bytes | Path) -> Header:
    with open_picture(data) as image:
        # Pillow searches the EXIF of a PNG after its pixels, and would decode them all; a TIFF it opens upright
        stored = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = stored and _orientation(image) >= 5
        width, height = reversed(image.size) if turned else image.size
        return Header(image.format or "unknown", image.mode, height, width)


def _reduce(image: Image.Image, size: int) -> tuple[float, float] | None:
    """Lets the JPEG decoder skip detail that the resize would drop; returns ``shown`` for :func:`to_rgb`.

    At least twice the size is kept for the antialiased resize, as in Pillow's ``thumbnail`` (``reducing_gap=2.0``).
    """
    factor = _factor(*image.size, size)
    if factor == 1:
        return None
    width, height = image.size
    drafted = image.draft(None, (width // factor, height // factor))  # None: not a JPEG
    return None if drafted is None else drafted[1][2:]


def _factor(width: int, height: int, size: int) -> int:
    """Returns by how much a JPEG may be reduced while it is decoded."""
    return next((factor for factor in (8, 4, 2) if min(width, height) >= 2 * factor * size), 1)


def check_image_size(size: int) -> None:
    """Raises UserError unless ``size`` is a whole number of pixels, at least 1."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"data.image_size={size} is not a size: give a whole number of pixels, 1 or more")


def describe_size(size: int, square: bool) -> str:
    """Describes, for reports, the image size that :func:`to_rgb` returns."""
    return f"squares of {size} pixels" if square else f"whole images within {size} × {2 * size} pixels"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF does not mean damaged pixels
        return 1


def _orientation_of(encoded: bytes) -> int:
    with open_picture(encoded) as image:
        return _orientation(image)


def _colours(image: Image.Image, bits: Bits) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image, bits)
    elif image.mode in ("RGBa", "La"):  # premultiplied: Pillow divides by alpha only for RGBA / LA
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # gives the colours of a direct conversion to RGB, without Pillow's warning
    return image.convert("RGB")


def _eight_bits(image: Image.Image, bits: Bits) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    if image.mode != "F" and bits != 8 and values.min() >= 0:
        low, high = value_range(values.astype(np.uint32), bits)
    else:
        low, high = _value_range(image.mode, float(values.min()), float(values.max()))
    return Image.fromarray(np.rint((values - low) * 255 / (high - low)).astype(np.uint8))


def _value_range(mode: str, lowest: float, highest: float) -> tuple[float, float]:
    """Returns the values of black and white for an image of this mode with these extreme values."""
    usual = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(mode, (65535.0,))
    for white in usual:
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, highest if highest > lowest else lowest + 1


def _square(image: Image.Image, size: int, region: Region) -> Image.Image:
    first, above, width, height = region
    if width == height == size:
        return image
    short = min(width, height)
    resized = (int(size * width / short), int(size * height / short))
    left, top = (round((side - size) / 2) for side in resized)
    # Only the crop is computed: otherwise a 1 × 60000 scan would be enlarged to gigabytes before the crop.
    x, y = width / resized[0], height / resized[1]  # source pixels per resized pixel
    right, bottom = min((left + size) * x, width), min((top + size) * y, height)
    return _resized(image, size, size, (first + left * x, above + top * y, first + right, above + bottom))


def _whole(image: Image.Image, size: int, region: Region) -> Image.Image:
    left, top, *sides = region
    short, long = sorted(sides)
    side, limit = (short, size) if long <= 2 * short else (long, 2 * size)
    if side <= limit:
        return image
    width, height = (max(1, int(limit * pixels // side)) for pixels in sides)
    return _resized(image, width, height, (left, top, left + sides[0], top + sides[1]))


def _resized(image: Image.Image, width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
    """Resizes ``box`` (left, top, right, bottom) of the image to ``width`` × ``height`` pixels."""
    # One axis at a time: Pillow 13 chooses their order by the box, and the order changes the last bits.
    left, top, right, bottom = box
    image = image.resize((width, image.height), Image.Resampling.BICUBIC, box=(left, 0, right, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(0, top, width, bottom))


def _reason(data: bytes | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, NotRegular):
        return f"{error.kind}, not a regular file"
    if isinstance(error, UnidentifiedImageError):
        empty = (len(data) if isinstance(data, bytes) else data.stat().st_size) == 0
        return "empty, 0 bytes" if empty else "not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"refused as a decompression bomb ({error}); data.max_pixels=… allows more"
    return f"{type(error).__name__}: {error}"

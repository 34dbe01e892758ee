"""Reads the markers of a JPEG up to its pixels, a tenth of the time of opening it with Pillow."""

from pathlib import Path
from typing import NamedTuple

from unlabeled.core.reading import open_regular

_START = b"\xff\xd8\xff"
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive Huffman; others are rare
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1


class JpegHeader(NamedTuple):
    """Facts of a JPEG of 8 bits, grey or in three colours."""

    width: int  # pixels, as stored
    height: int
    may_turn: bool  # EXIF or XMP is there, which may name an orientation


def read_jpeg(path: Path) -> bytes | None:
    """Reads a file if it begins like a JPEG, else None. Raises OSError, and NotRegular for a pipe."""
    with open_regular(path) as file:
        start = file.read(len(_START))
        return start + file.read() if start == _START else None


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Reads the header; None for anything but a JPEG of 8 bits with one or three components, such as CMYK."""
    if not data.startswith(_START):
        return None
    place, size, may_turn = 2, None, False
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == 0xFF or marker in _BARE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _OTHER_FRAMES or marker == _END:
            return None
        if marker == _SCAN:
            return JpegHeader(*size, may_turn) if size is not None else None
        may_turn |= marker == _APP1
        if marker in _FRAMES:
            size = _frame(data[place + 4 : place + 10])
        place += 2 + length
    return None


def _frame(values: bytes) -> tuple[int, int] | None:
    """Returns width and height of a start of frame that this project decodes."""
    if len(values) < 6 or values[0] != 8 or values[5] not in (1, 3):
        return None
    height, width = int.from_bytes(values[1:3]), int.from_bytes(values[3:5])
    return (width, height) if width and height else None

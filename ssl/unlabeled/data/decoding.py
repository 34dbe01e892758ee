"""Settings of decoding besides the image size: channels, value of white, largest file allowed, decoder of JPEG."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Interval
from torch import Tensor

from unlabeled.core.ranges import NEW_DECODER, Decoder
from unlabeled.data.source import Splits
from unlabeled.errors import UserError

MOST_PIXELS = 178_956_970  # per image: the number at which Pillow raises DecompressionBombError
MOST_CHANNELS = 1024
Bits = Annotated[int, Interval(ge=8, le=16)] | Literal["auto"]
_said: set[str] = set()  # kinds of warnings that this process has printed


@dataclass(frozen=True)
class Decoding:
    """Settings that say how encoded images become uint8 tensors.

    Args:
        channels: of every image. 3 is RGB, converted from any image that Pillow decodes; another number keeps the bands
            of a file unchanged, and a file with another number of bands is refused as corrupt.
        bits: sets the value of white in integers deeper than 8 bits, 2^bits − 1. ``auto`` is the fewest of 8, 10, 12,
            14 and 16 bits that hold all values of an image. With the default of 8 white is 65,535 in 16-bit files (see
            :func:`unlabeled.data.decode.to_rgb`), and a warning names files that come out dark.
        max_pixels: most pixels of a file that is decoded; larger files may be made to fill the memory.
        decode: the decoder of JPEG, see :func:`unlabeled.data.decode.decode_bytes`; ``auto`` is torchvision.

    Raises:
        UserError: a value outside these ranges.
    """

    channels: int = 3
    bits: Bits = 8
    max_pixels: int = MOST_PIXELS
    decode: Decoder = "pillow"

    def __post_init__(self) -> None:
        if isinstance(self.channels, bool) or not 1 <= self.channels <= MOST_CHANNELS:
            raise UserError(f"data.channels={self.channels}: must be a whole number from 1 to {MOST_CHANNELS}")
        if self.bits != "auto" and (not isinstance(self.bits, int) or not 8 <= self.bits <= 16):
            raise UserError(f"data.bits={self.bits}: must be a whole number from 8 to 16, or auto")
        if isinstance(self.max_pixels, bool) or self.max_pixels < 1:
            raise UserError(f"data.max_pixels={self.max_pixels}: must be a whole number of at least 1")
        if self.decode not in get_args(Decoder):
            raise UserError(f"data.decode={self.decode}: must be {', '.join(get_args(Decoder)[:-1])} or cuda")

    @property
    def decoder(self) -> Decoder:
        """Returns the decoder of JPEG, never ``auto``."""
        return NEW_DECODER if self.decode == "auto" else self.decode

    def of(self, splits: Splits) -> Splits:
        """Sets these settings on all sources of a data set."""
        for source in splits.every().values():
            source.decoding = self  # type: ignore[attr-defined]
        return splits


RGB = Decoding()  # 8 bits, and Pillow's own limit of pixels


def channels_of(source: object) -> int:
    """Returns the number of channels of a source's images: 3 where the source does not say."""
    return getattr(source, "decoding", RGB).channels


def in_colour(pixels: Tensor) -> Tensor:
    """Converts pixels [B, C, h, w] in [0, 1] to [B, 3, h, w] for display: one channel as grey, else the first three."""
    channels = pixels.shape[1]
    if channels < 3:
        return pixels[:, :1].expand(-1, 3, -1, -1)
    return pixels if channels == 3 else pixels[:, :3]


def warn_once(kind: str, line: str) -> None:
    """Prints a line on stderr once per run, from one process and no worker, though it holds for many files."""
    worker = multiprocessing.parent_process() is not None
    if kind in _said or worker or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    _said.add(kind)
    print(f"warning: {line}", file=sys.stderr)

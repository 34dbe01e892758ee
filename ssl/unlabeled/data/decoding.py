"""What an image is made into besides its size: how many channels, what white is, and how large it may be."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor

from unlabeled.data.source import Splits
from unlabeled.errors import UserError

MOST_PIXELS = 178_956_970  # of an image: where Pillow itself raises DecompressionBombError
MOST_CHANNELS = 1024
Bits = Annotated[int, Interval(ge=8, le=16)] | Literal["auto"]
_said: set[str] = set()  # kinds of lines that this process has told


@dataclass(frozen=True)
class Decoding:
    """How encoded images become uint8 tensors.

    Args:
        channels: of every image. 3 is RGB, made of whatever Pillow decodes; any other number takes the bands of a file
            as they are, and a file with another number of them is refused as corrupt.
        bits: of whole numbers deeper than 8 bits, what white is: 2^bits − 1. ``auto`` is the fewest of 8, 10, 12, 14
            and 16 bits that hold all values of an image. 8, the default, is what there was before anybody chose: 65,535
            for 16-bit files (see :func:`unlabeled.data.decode.to_rgb`), with a line on those that come out dark.
        max_pixels: of a file that is decoded; beyond it lies what may be made to fill the memory.

    Raises:
        UserError: a value that is none of these.
    """

    channels: int = 3
    bits: Bits = 8
    max_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        if isinstance(self.channels, bool) or not 1 <= self.channels <= MOST_CHANNELS:
            raise UserError(f"data.channels={self.channels}: must be a whole number from 1 to {MOST_CHANNELS}")
        if self.bits != "auto" and (not isinstance(self.bits, int) or not 8 <= self.bits <= 16):
            raise UserError(f"data.bits={self.bits}: must be a whole number from 8 to 16, or auto")
        if isinstance(self.max_pixels, bool) or self.max_pixels < 1:
            raise UserError(f"data.max_pixels={self.max_pixels}: must be a whole number of at least 1")

    def of(self, splits: Splits) -> Splits:
        """Let the sources of a data set decode like this."""
        for source in splits.every().values():
            source.decoding = self  # type: ignore[attr-defined]
        return splits


RGB = Decoding()  # 8 bits, and no image larger than Pillow takes


def channels_of(source: object) -> int:
    """Of the images of a source: 3 where it says nothing."""
    return getattr(source, "decoding", RGB).channels


def in_colour(pixels: Tensor) -> Tensor:
    """Pixels [B, C, h, w] in [0, 1] as [B, 3, h, w] to look at: one channel as grey, of more the first three."""
    channels = pixels.shape[1]
    if channels < 3:
        return pixels[:, :1].expand(-1, 3, -1, -1)
    return pixels if channels == 3 else pixels[:, :3]


def say_once(kind: str, line: str) -> None:
    """Tell on stderr what is true of many files by the first of them: once a run, by no worker, by one process."""
    worker = multiprocessing.parent_process() is not None
    if kind in _said or worker or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    _said.add(kind)
    print(f"warning: {line}", file=sys.stderr)

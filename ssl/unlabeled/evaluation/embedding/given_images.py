"""Images that somebody has in memory, as a data source."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unlabeled.data.source import Splits
from unlabeled.errors import UserError
from unlabeled.weights.pretrained import uint8_pixels


class GivenImages:
    """Pillow images, arrays [H, W, 3] or tensors [3, H, W], without labels; named by their numbers."""

    square = False

    def __init__(self, images: Sequence[Any]) -> None:
        if not len(images):
            raise UserError("data: an empty list; give images")
        self._images = images
        self.labels, self.classes = torch.full((len(images),), -1), list[str]()
        self.image_size = max(min(self._pixels(row).shape[-2:]) for row in range(min(8, len(images))))

    def __len__(self) -> int:
        return len(self._images)

    def decode(self, index: int) -> Tensor:
        return self._pixels(index).clone()  # whoever writes to it must not write to the caller's

    def name(self, index: int) -> str:
        return f"image {index}"

    def _pixels(self, index: int) -> Tensor:
        pixels = uint8_pixels(self._images[index])
        if pixels.dim() != 3:
            raise UserError(f"data: number {index} of the list is an array of several images; give them one by one")
        return pixels


def given_splits(data: Any) -> Splits:
    """Makes a data set of a list of images, one image, or several in one array.

    Raises:
        UserError: it is none of these.
    """
    images = list(data) if isinstance(data, list | tuple) else uint8_pixels(data)
    if isinstance(images, Tensor):
        images = list(images) if images.dim() == 4 else [images]
    source = GivenImages(images)
    return Splits(source, None, f"{len(source):,} images from memory")

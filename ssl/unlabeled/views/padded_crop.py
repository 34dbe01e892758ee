"""Cuts a square out of an image with a border, for training with labels on small images."""

from typing import Literal

import torch
from torch import Generator, Tensor

from unlabeled.core.ranges import NoneOrMore, Pixels, Share
from unlabeled.errors import UserError
from unlabeled.views.operations import Parameters

Fill = Literal["black", "reflect"]


class RandomCrop:
    """Adds a border, cuts out a square at a random place, and mirrors it half of the time; nothing is resized.

    As torchvision's ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip``; on the whole batch.

    Args:
        size: height and width of the result, pixels; at most those of the images with their borders.
        padding: width of the border on each side, pixels.
        fill: what the border shows: ``black``, or ``reflect``: the image mirrored at its edge, without the edge twice.
        flip: probability of a horizontal flip.

    Raises:
        UserError: a fill of another name; or, at the first batch, images smaller than the result or than the border.
    """

    crops = True  # and not framed: nothing is resized, so that all images have one size
    in_pixels = ("size", "padding")

    def __init__(self, size: Pixels, padding: NoneOrMore, fill: Fill, flip: Share) -> None:
        if fill not in ("black", "reflect"):
            raise UserError(f"RandomCrop: fill={fill} is neither black nor reflect")
        self.size, self.padding, self.fill, self.flip = size, padding, fill, flip

    @property
    def applied_as(self) -> tuple[object, ...]:
        return self.size, self.padding, self.fill

    def sample(self, count: int, generator: Generator) -> Parameters:
        return {
            "where": torch.rand((count, 2), generator=generator, dtype=torch.float64),
            "flip": torch.rand(count, generator=generator) < self.flip,
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        self._check(images)
        device = images.device
        where, flip = (parameters[name].to(device, non_blocking=True) for name in ("where", "flip"))
        pixel = torch.arange(self.size, device=device)
        top, left = ((where[:, axis : axis + 1] * self._places(images.shape[2 + axis])).long() for axis in (0, 1))
        columns = left + torch.where(flip[:, None], self.size - 1 - pixel, pixel)
        return self._take(images, top + pixel - self.padding, columns - self.padding)

    def _places(self, side: int) -> int:
        """Returns at how many pixels of a line, with its borders, the square can begin."""
        return side + 2 * self.padding - self.size + 1

    def _take(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Returns the pixels at rows and columns, [B, size] each, which may be outside of the image."""
        rows, rows_inside = self._inside(rows, images.shape[2])
        columns, columns_inside = self._inside(columns, images.shape[3])
        number = torch.arange(len(images), device=images.device)[:, None, None]
        taken = images[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.fill == "reflect":
            return taken.contiguous()
        return taken * (rows_inside[:, None, :, None] & columns_inside[:, None, None, :])

    def _inside(self, places: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Returns places moved into an image of ``side`` pixels, and which of them were there."""
        inside = (places >= 0) & (places < side)
        if self.fill == "reflect":
            places = places.abs()
            places = torch.where(places < side, places, 2 * (side - 1) - places)
        return places.clamp(0, side - 1), inside

    def _check(self, images: Tensor) -> None:
        smallest = min(images.shape[2:])
        if self.size > smallest + 2 * self.padding:
            raise UserError(
                f"RandomCrop: size={self.size} of images of {smallest} pixels with borders of {self.padding}: give at"
                f" most {smallest + 2 * self.padding}"
            )
        if self.fill == "reflect" and self.padding >= smallest:
            raise UserError(f"RandomCrop: padding={self.padding} with fill=reflect: must be below {smallest} pixels")

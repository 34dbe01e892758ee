"""Covers a square at a random place (DeVries and Taylor 2017, arXiv:1708.04552)."""

import torch
from torch import Generator, Tensor

from unlabeled.core.ranges import Pixels, Share
from unlabeled.views.operations import Parameters


class Cutout:
    """Covers a square whose centre is a random pixel; what lies outside of the image is lost.

    Args:
        size: side of the square, pixels; of an odd one the centre is in its middle.
        fill: what it shows, in [0, 1]: 0 is black, 0.5 grey.
        probability: share of the images that are changed.
    """

    in_pixels = ("size",)

    def __init__(self, size: Pixels, fill: Share, probability: Share) -> None:
        self.size, self.fill, self.probability = size, fill, probability

    def sample(self, count: int, generator: Generator) -> Parameters:
        return {
            "where": torch.rand((count, 2), generator=generator, dtype=torch.float64),
            "applied": torch.rand(count, generator=generator) < self.probability,
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        where, applied = (parameters[name].to(images.device, non_blocking=True) for name in ("where", "applied"))
        rows, columns = (self._covered(where[:, axis], images.shape[2 + axis]) for axis in (0, 1))
        covered = rows[:, :, None] & columns[:, None, :] & applied[:, None, None]
        return images.masked_fill(covered[:, None], self.fill)

    def _covered(self, where: Tensor, side: int) -> Tensor:
        """Returns which pixels of a line are covered, bool [B, side]."""
        first = (where * side).long()[:, None] - self.size // 2
        pixel = torch.arange(side, device=where.device)
        return (pixel >= first) & (pixel < first + self.size)

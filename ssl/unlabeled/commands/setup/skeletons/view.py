"""Skeleton: brightness by a random power of each value, v → v^γ. Put your operation in the place of this one."""

import math

import torch
from torch import Generator, Tensor


class Skeleton:
    """A random share of the images to the power of γ, log-uniform between 1/strength and strength.

    Args:
        strength: at least 1, which changes nothing.
        probability: share of the images that are changed.
    """

    def __init__(self, strength: float, probability: float) -> None:
        self.strength, self.probability = strength, probability

    def sample(self, count: int, generator: Generator) -> dict[str, Tensor]:
        """Every draw of ``count`` images, a row each, from this generator alone: so resuming and processes agree."""
        applied = torch.rand(count, generator=generator) < self.probability
        exponent = torch.rand(count, generator=generator) * 2 - 1
        return {"gamma": torch.where(applied, (exponent * math.log(self.strength)).exp(), 1.0)}

    def apply(self, images: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Images [B, 3, h, w] in [0, 1], which may be written to; nothing random in here."""
        gamma = parameters["gamma"].to(images.device)[:, None, None, None]
        return images.float().clamp_(0, 1).pow_(gamma).to(images.dtype)

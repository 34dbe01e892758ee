"""The background of an image painted over, so that a network cannot tell two images apart by it (ReLICv2)."""

import math
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from unlabeled.errors import UserError
from unlabeled.views.colour import luminance
from unlabeled.views.masks import Masks, open_masks
from unlabeled.views.operations import Parameters, on_some

Fill = Literal["black", "mean_gray", "random_gray", "gaussian_noise"]
NOISE_MEAN, NOISE_DEVIATION = 0.5, 0.25  # our choice: hardly a value has to be clamped


class RemoveBackground:
    """What lies outside an image's mask replaced in a random share of the images; first of a group, before the crop.

    x_m = m · x + (1 − m) · c (Tomasev et al. 2022, arXiv:2201.05119; c after Ryali et al. 2021, arXiv:2103.12719). The
    masks stay in their file, which is opened when the first image is changed: evaluation does not need it.

    Args:
        masks: file of ``python -m unlabeled.views.saliency``; None changes no image.
        probability: share of the images that are changed.
        fill: c is ``black``; ``mean_gray``, the mean luminance of the image; ``random_gray``, uniform in [0, 1], one
            value per image; ``gaussian_noise``, one value per pixel and channel.
        min_coverage, max_coverage: a mask of a smaller or larger share of foreground leaves the image as it is.
    """

    def __init__(
        self, masks: str | None, probability: float, fill: Fill, min_coverage: float, max_coverage: float
    ) -> None:
        if not 0 <= min_coverage < max_coverage <= 1:
            raise UserError(f"min_coverage={min_coverage}, max_coverage={max_coverage}: 0 ≤ min < max ≤ 1 is needed")
        self.masks, self.probability, self.fill = masks, probability, fill
        self.min_coverage, self.max_coverage = min_coverage, max_coverage
        self._opened: Masks | None = None

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        return {
            "applied": torch.rand(count, generator=generator) < self.probability,
            "grey": torch.rand(count, generator=generator),
            "seed": torch.randint(2**62, (count,), generator=generator),  # of the noise
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        drawn = parameters["applied"]
        if self.masks is None or not bool(drawn.any()):
            return images
        if self._opened is None:
            self._opened = open_masks(self.masks)
        masks, ids = self._opened, parameters["ids"].cpu()
        coverage = masks.coverage[ids]
        usable = (coverage >= self.min_coverage) & (coverage <= self.max_coverage)

        def paint(some: Tensor, rows: Tensor) -> Tensor:
            foreground = masks.rows(ids[rows], some.device)
            return paint_background(some, foreground, self.fill, parameters["grey"][rows], parameters["seed"][rows])

        return on_some(images, drawn & usable, paint)


def paint_background(images: Tensor, masks: Tensor, fill: Fill, grey: Tensor, seed: Tensor) -> Tensor:
    """Replace what the masks leave out.

    Args:
        images: float [n, 3, H, W] in [0, 1].
        masks: bool [n, h, w], True on the foreground; resized to H × W (nearest).
        fill: as in :class:`RemoveBackground`.
        grey: [n] in [0, 1], read by ``random_gray``.
        seed: int64 [n], read by ``gaussian_noise``.

    Returns:
        [n, 3, H, W].
    """
    masks = F.interpolate(masks[:, None].to(images.dtype), images.shape[2:], mode="nearest-exact") > 0.5
    return torch.where(masks, images, _colour(images, fill, grey.to(images), seed.to(images.device)))


def _colour(images: Tensor, fill: Fill, grey: Tensor, seed: Tensor) -> Tensor:
    """c, in a shape that broadcasts to [n, 3, H, W]."""
    if fill == "mean_gray":
        return luminance(images).mean((2, 3), keepdim=True)
    if fill == "random_gray":
        return grey[:, None, None, None]
    if fill == "gaussian_noise":
        noise = normal_noise(seed, images[0].numel()).view_as(images)
        return (NOISE_MEAN + NOISE_DEVIATION * noise).clamp(0, 1).to(images.dtype)
    return images.new_zeros(())


def normal_noise(seed: Tensor, count: int) -> Tensor:
    """Standard normal numbers float32 [n, count], each a function of its row's ``seed`` int64 [n] and its place alone.

    SplitMix64 (Steele et al. 2014) as a counter-based generator, then Box and Muller: no state, so rows may be drawn on
    any process and on the device itself.
    """
    place = torch.arange(1, count + 1, device=seed.device)
    bits = _scramble(seed[:, None] + place * -0x61C8864680B583EB)
    radius = ((bits >> 40 & 0xFFFFFF) + 1).float() / 2**24  # in (0, 1]: its logarithm is finite
    angle = (bits >> 8 & 0xFFFFFF).float() / 2**24
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def _scramble(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, whose products wrap; its constants as signed numbers."""
    bits = (bits ^ _shift(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shift(bits, 27)) * -0x6B2FB644ECCEEE15
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros from the left; int64's own shift copies the sign."""
    return bits >> by & ((1 << (64 - by)) - 1)

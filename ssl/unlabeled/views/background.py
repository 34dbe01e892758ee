"""Paints over the background of an image, so that a network cannot use it to tell images apart (ReLICv2)."""

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from unlabeled.core.ranges import FilePath, Share
from unlabeled.data.padding import image_sizes
from unlabeled.errors import UserError
from unlabeled.views.kernels.colour import luminance
from unlabeled.views.masks import Masks, open_masks, unpack
from unlabeled.views.operations import Parameters, apply_to_rows

Fill = Literal["black", "mean_gray", "random_gray", "gaussian_noise"]
NOISE_MEAN, NOISE_DEVIATION = 0.5, 0.25  # our choice: few values have to be clamped


class RemoveBackground:
    """Replaces what is outside of an image's mask in a random share of the images; first in a group, before the crop.

    x_m = m · x + (1 − m) · c (Tomasev et al. 2022, arXiv:2201.05119; c after Ryali et al. 2021, arXiv:2103.12719). The
    masks stay in their file, which is opened for the first image that is changed: evaluation does not need it.

    Args:
        masks: file of ``unlabeled saliency``; None changes no image.
        probability: share of the images that are changed.
        fill: c is ``black``; ``mean_gray``: the mean luminance of the image; ``random_gray``: uniform in [0, 1], one
            value per image; ``gaussian_noise``: one value per pixel and channel.
        min_coverage, max_coverage: an image whose mask has a smaller or larger share of foreground is not changed.
    """

    framed = coloured = draws_on_host = to_some = True

    def __init__(
        self, masks: FilePath | None, probability: Share, fill: Fill, min_coverage: Share, max_coverage: Share
    ) -> None:
        if not 0 <= min_coverage < max_coverage <= 1:
            raise UserError(f"min_coverage={min_coverage}, max_coverage={max_coverage}: 0 ≤ min < max ≤ 1 is needed")
        self.masks, self.probability, self.fill = masks, probability, fill
        self.min_coverage, self.max_coverage = min_coverage, max_coverage
        self._opened: Masks | None = None

    @property
    def changes_nothing(self) -> bool:
        return self.masks is None

    @property
    def applied_as(self) -> tuple[object, ...]:
        return self.masks, self.fill, self.min_coverage, self.max_coverage

    def sample(self, count: int, generator: Generator) -> Parameters:
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
        applied = drawn & (coverage >= self.min_coverage) & (coverage <= self.max_coverage)
        packed = masks.packed.new_zeros(len(ids), masks.packed.shape[1])
        packed[applied] = masks.packed[ids[applied]]  # reads only these from the disk

        def paint(some: Tensor, packed: Tensor, grey: Tensor, seed: Tensor, *sizes: Tensor) -> Tensor:
            return paint_background(some, unpack(packed, masks.size), self.fill, grey, seed, *sizes)

        sizes = [parameters["sizes"].cpu()] if "sizes" in parameters else []
        return apply_to_rows(images, applied, paint, packed, parameters["grey"], parameters["seed"], *sizes)


def paint_background(
    images: Tensor, masks: Tensor, fill: Fill, grey: Tensor, seed: Tensor, sizes: Tensor | None = None
) -> Tensor:
    """Replaces the pixels outside of the masks.

    Args:
        images: float [n, 3, H, W] in [0, 1].
        masks: bool [n, h, w], True on the foreground; resized (nearest) to the image, for any shape.
        fill: as in :class:`RemoveBackground`.
        grey: [n] in [0, 1], used by ``random_gray``.
        seed: int64 [n], used by ``gaussian_noise``.
        sizes: int64 [n, 2], height and width of each image in the upper left corner of its canvas; None: H and W.

    Returns:
        [n, 3, H, W].
    """
    sizes = image_sizes(images, sizes)
    return torch.where(resize_masks(masks, sizes, images), images, _colour(images, fill, grey.to(images), seed, sizes))


def resize_masks(masks: Tensor, sizes: Tensor, images: Tensor) -> Tensor:
    """Resizes bool [n, h, w] to [n, 1, H, W] over the ``sizes`` [n, 2] of ``images``; repeats the last pixel beyond."""
    rows, columns = (  # (i + 0.5) · side / length in integers
        ((2 * torch.arange(pixels, device=sizes.device) + 1) * side // (2 * length[:, None])).clamp(max=side - 1)
        for pixels, side, length in zip(images.shape[2:], masks.shape[1:], sizes.unbind(1), strict=True)
    )
    number = torch.arange(len(masks), device=masks.device)[:, None, None]
    return masks[number, rows[:, :, None], columns[:, None]][:, None]


def _colour(images: Tensor, fill: Fill, grey: Tensor, seed: Tensor, sizes: Tensor) -> Tensor:
    """Returns c, in a shape that broadcasts to [n, 3, H, W]."""
    if fill == "mean_gray":
        return (luminance(images).flatten(1).sum(1) / sizes.prod(1))[:, None, None, None]
    if fill == "random_gray":
        return grey[:, None, None, None]
    if fill == "gaussian_noise":
        channel, row, column = (torch.arange(length, device=images.device) for length in images.shape[1:])
        place = (channel[:, None, None] << 40) + (row[:, None] << 20) + column  # independent of the canvas size
        noise = seeded_normal(seed.to(images.device), place)
        return (NOISE_MEAN + NOISE_DEVIATION * noise).clamp(0, 1).to(images.dtype)
    return images.new_zeros(())


def seeded_normal(seed: Tensor, place: Tensor) -> Tensor:
    """Returns standard normal numbers float32 [n, …], functions of ``seed`` int64 [n] and ``place`` int64 […] alone.

    SplitMix64 (Steele et al. 2014) as a counter-based generator, then Box and Muller: it has no state, so rows can be
    drawn on any process and on the device itself.
    """
    seed = seed.view(-1, *[1] * place.dim())
    bits = _scramble(seed + (place + 1) * -0x61C8864680B583EB)
    radius = ((bits >> 40 & 0xFFFFFF) + 1).float() / 2**24  # in (0, 1]: its logarithm is finite
    angle = (bits >> 8 & 0xFFFFFF).float() / 2**24
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def _scramble(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, whose products wrap; its constants as signed numbers."""
    bits = (bits ^ _shift(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shift(bits, 27)) * -0x6B2FB644ECCEEE15
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shifts to the right, filling with zeros; int64's own shift copies the sign."""
    return bits >> by & ((1 << (64 - by)) - 1)

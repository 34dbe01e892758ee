"""The random operations that views are made of: each draws its parameters apart from applying them.

``sample`` draws for the whole global batch on the CPU; ``apply`` gets the rows of this process. Batched throughout:
no Python per image.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor

from unlabeled.views.colour import equalize, jitter, luminance
from unlabeled.views.crop import Interpolation, crop_resize
from unlabeled.views.resample import Taps, resample

Parameters = dict[str, Tensor]  # name → one row per image, on the CPU; "ids" [B] as well, wherever the batch has them


class Operation(Protocol):
    """A random operation on a batch of float images [B, 3, h, w] in [0, 1]."""

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        """Draw the parameters of ``count`` images of ``height`` × ``width`` pixels."""
        ...

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Do it."""
        ...


class RandomResizedCrop:
    """A box of random area and shape, resized to a square, mirrored half of the time.

    Draws as torchvision: area uniform, ratio log-uniform, ten tries, then the largest central box of allowed shape.

    Args:
        size: height and width of the result, pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: ``bilinear`` or ``bicubic``, both with antialias.
        flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolation: Interpolation,
        flip: float,
    ) -> None:
        self.size, self.scale, self.ratio = size, scale, ratio
        self.interpolation, self.flip = interpolation, flip

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        tries = 10
        area = _uniform((count, tries), *self.scale, generator) * (height * width)
        ratio = _uniform((count, tries), math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp()
        box_width = (area * ratio).sqrt().round().long()
        box_height = (area / ratio).sqrt().round().long()
        fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
        first = fits.long().argmax(1, keepdim=True)  # of equal values, the first
        fallback = self._central(height, width)
        found = fits.any(1)
        box_height = torch.where(found, box_height.gather(1, first)[:, 0], fallback[0])
        box_width = torch.where(found, box_width.gather(1, first)[:, 0], fallback[1])
        where = torch.rand((count, 2), generator=generator, dtype=torch.float64)
        top = (where[:, 0] * (height - box_height + 1)).long()
        left = (where[:, 1] * (width - box_width + 1)).long()
        top = torch.where(found, top, (height - box_height) // 2)
        left = torch.where(found, left, (width - box_width) // 2)
        flip = torch.rand(count, generator=generator) < self.flip
        return {"box": torch.stack([top, left, box_height, box_width], 1), "flip": flip}

    def _central(self, height: int, width: int) -> tuple[int, int]:
        if width / height < self.ratio[0]:
            return max(1, round(width / self.ratio[0])), width
        if width / height > self.ratio[1]:
            return height, max(1, round(height * self.ratio[1]))
        return height, width

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        box, flip = parameters["box"].to(images.device), parameters["flip"].to(images.device)
        return crop_resize(images, box, flip, self.size, self.interpolation)


class ColourJitter:
    """Brightness, contrast, saturation (multiplicative, as torchvision) and hue, in a random order per image.

    Args:
        brightness, contrast, saturation: factors are uniform in [max(0, 1 − value), 1 + value].
        hue: shifts are uniform in [−value, value] turns, at most 0.5.
        probability: share of the images that are changed at all.
        additive_brightness: what is uniform in [−brightness, brightness] is added to all values instead, as TensorFlow
            has it: SimCLR's first version (google-research/simclr, ``simclrv1``), BYOL.
    """

    def __init__(
        self,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        probability: float,
        additive_brightness: bool = False,
    ) -> None:
        self.strengths, self.hue, self.probability = (brightness, contrast, saturation), hue, probability
        self.additive_brightness = additive_brightness
        self.ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in self.strengths] + [(-hue, hue)]
        if additive_brightness:
            self.ranges[0] = (-brightness, brightness)

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        factors = [_uniform((count,), low, high, generator) for low, high in self.ranges]
        order = torch.rand((count, 4), generator=generator).argsort(1)
        applied = torch.rand(count, generator=generator) < self.probability
        return {"factors": torch.stack(factors, 1).float(), "order": order, "applied": applied}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        def change(some: Tensor, rows: Tensor) -> Tensor:
            factors = parameters["factors"][rows].to(images.device, images.dtype)
            return jitter(some, factors, parameters["order"][rows], self.additive_brightness)

        return on_some(images, parameters["applied"], change)


class Grayscale:
    """Colour taken away from a random share of the images."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        return {"applied": torch.rand(count, generator=generator) < self.probability}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return torch.where(parameters["applied"].to(images.device)[:, None, None, None], luminance(images), images)


class Solarize:
    """Bright values turned over in a random share of the images: v → 1 − v where v ≥ threshold.

    Args:
        threshold: in [0, 1], 128/255 is PIL's 128; or the smallest and the largest, uniform for each image.
        probability: share of the images that are changed.
    """

    def __init__(self, threshold: float | tuple[float, float], probability: float) -> None:
        self.low, self.high = (threshold, threshold) if isinstance(threshold, float | int) else threshold
        self.probability = probability

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        drawn = {"applied": torch.rand(count, generator=generator) < self.probability}
        if self.low < self.high:
            drawn["threshold"] = _uniform((count,), self.low, self.high, generator).float()
        return drawn

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        drawn = parameters.get("threshold")
        threshold = self.low if drawn is None else drawn.to(images.device)[:, None, None, None]
        turned = parameters["applied"].to(images.device)[:, None, None, None] & (images >= threshold)
        return torch.where(turned, 1 - images, images)


class Equalize:
    """The histogram of each channel made even, as PIL does it, in a random share of the images.

    Args:
        probability: share of the images that are changed.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        return {"applied": torch.rand(count, generator=generator) < self.probability}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return on_some(images, parameters["applied"], lambda some, rows: equalize(some))


class GaussianBlur:
    """A Gaussian of random width over a random share of the images.

    Args:
        sigma: smallest and largest standard deviation, pixels.
        kernel_fraction: the kernel reaches ``int(size · fraction) // 2`` pixels to each side (SimCLR: a tenth).
        probability: share of the images that are blurred.
    """

    def __init__(self, sigma: tuple[float, float], kernel_fraction: float, probability: float) -> None:
        self.sigma, self.kernel_fraction, self.probability = sigma, kernel_fraction, probability

    def sample(self, count: int, height: int, width: int, generator: Generator) -> Parameters:
        sigma = _uniform((count,), *self.sigma, generator).float()
        return {"sigma": sigma, "applied": torch.rand(count, generator=generator) < self.probability}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        radius = int(images.shape[-1] * self.kernel_fraction) // 2

        def blur(some: Tensor, rows: Tensor) -> Tensor:
            sigma = parameters["sigma"][rows].to(images.device)
            return resample(some, *(_gaussian(sigma, radius, side) for side in some.shape[2:]))

        return on_some(images, parameters["applied"], blur)


def _gaussian(sigma: Tensor, radius: int, pixels: int) -> Taps:
    """A Gaussian of deviation ``sigma`` [n] around each pixel of a line; beyond its ends the line is mirrored."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = (-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2).exp()
    weight = weight / weight.sum(1, keepdim=True)
    period = max(1, 2 * (pixels - 1))
    pixel = (torch.arange(pixels, device=sigma.device)[:, None] + offset) % period
    pixel = torch.minimum(pixel, period - pixel)
    return Taps(pixel.expand(len(sigma), -1, -1), weight[:, None].expand(-1, pixels, -1))


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def on_some(images: Tensor, applied: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Replace the rows where ``applied`` (on the CPU, so that nothing waits for the device) by ``change`` of them."""
    rows = applied.nonzero().flatten()
    if len(rows) == 0:
        return images
    on_device = rows.to(images.device)
    return images.index_copy(0, on_device, change(images[on_device], rows))

"""The random operations that views are made of: each draws its parameters separately from applying them.

``sample`` draws for the whole global batch on the CPU; ``apply`` gets the rows of this process. Batched throughout:
no Python per image.
"""

import math
from collections.abc import Callable
from typing import Annotated, Protocol, runtime_checkable

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from unlabeled.core.few_launches import few_launches
from unlabeled.core.ranges import Pixels, Share, ShareSpan, Sigmas, Span, Strength, Threshold, Thresholds
from unlabeled.objective import Check
from unlabeled.views.kernels.colour import color_jitter, equalize, luminance, solarize
from unlabeled.views.kernels.crop import Interpolation, crop_resize, crop_views
from unlabeled.views.kernels.resample import Taps, matrix, resize_dense, resize_sparse, use_sparse_weights

Parameters = dict[str, Tensor]  # name → one row per image; "ids" and "sizes" come from the batch


@runtime_checkable
class Operation(Protocol):
    """A random operation on a batch of images [B, 3, h, w] in [0, 1], float32 or bfloat16.

    An operation with ``framed = True`` also takes images of different sizes in the upper left corners of canvases:
    ``parameters["sizes"]`` int64 [B, 2] are their heights and widths. One with ``crops = True`` makes all images one
    size, and does not change its input. One with ``coloured = True`` takes RGB only; others take any channels. One with
    ``to_some = True`` draws ``applied``, bool [B], and leaves rows as they are where it is False. ``in_pixels`` names
    the attributes that are lengths of a view, and shrink with it; see :func:`unlabeled.views.progressive.resized`.

    Parameters are on the CPU, and on a GPU beside the images, unless the operation has ``draws_on_host = True``. What
    is after the crop is compiled there: no reading of values, no shapes that depend on them.
    """

    def sample(self, count: int, generator: Generator) -> Parameters:
        """Draws the parameters of ``count`` images, independent of their sizes."""
        ...

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Applies the operation, in float32 for any dtype of ``images``, which may be overwritten."""
        ...


@runtime_checkable
class HasPlanWarnings(Protocol):
    """An operation that can detect probable mistakes in its settings."""

    def plan_warnings(self, pixels: int) -> list[Check]:
        """Returns checks for images of that height and width."""
        ...


@runtime_checkable
class AppliedAlike(Protocol):
    """An operation that says what ``apply`` depends on besides its parameters: equal ones can be applied together."""

    @property
    def applied_as(self) -> tuple[object, ...]: ...


class RandomResizedCrop:
    """Cuts a box of random area and shape, resizes it to a square, and mirrors it half of the time.

    Draws as torchvision: area uniform, ratio log-uniform, ten tries, then the largest central box of allowed shape.

    Args:
        size: height and width of the result, pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: ``bilinear`` or ``bicubic``, both with antialias.
        flip: probability of a horizontal flip.
    """

    framed = crops = True
    in_pixels = ("size",)

    def __init__(
        self,
        size: Pixels,
        scale: ShareSpan,
        ratio: Span,
        interpolation: Interpolation,
        flip: Share,
    ) -> None:
        self.size, self.scale, self.ratio = size, scale, ratio
        self.interpolation, self.flip = interpolation, flip

    @property
    def applied_as(self) -> tuple[object, ...]:
        return self.size, self.ratio, self.interpolation

    def sample(self, count: int, generator: Generator) -> Parameters:
        tries = 10
        return {
            "area": _uniform((count, tries), *self.scale, generator),
            "ratio": _uniform((count, tries), math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp(),
            "where": torch.rand((count, 2), generator=generator, dtype=torch.float64),
            "flip": torch.rand(count, generator=generator) < self.flip,
        }

    def plan_warnings(self, pixels: int) -> list[Check]:
        """Checks that crops are at most twice as large as images, and boxes at least 4 × 4 pixels (both our choice)."""
        smallest = math.sqrt(self.scale[0]) * pixels
        return [
            Check(
                "crops no larger than twice the images",
                self.size <= 2 * pixels,
                f"crops of {self.size} pixels from images of {pixels}",
                f"most pixels are interpolated: give a size of at most {2 * pixels} in views, or larger images",
            ),
            Check(
                "crops that show something",
                smallest >= 4,
                f"scale from {self.scale[0]:g} of images of {pixels} pixels: boxes down to {smallest:.1f} pixels",
                f"give scale from {min(1.0, 17 / pixels**2):.2g} on, or larger images",
            ),
        ]

    def boxes(self, parameters: Parameters, sizes: Tensor) -> Tensor:
        """Returns the boxes drawn for images of ``sizes`` [B, 2]: int64 [B, 4], top, left, height and width."""
        drawn = (parameters[name] for name in ("area", "ratio", "where"))
        area, ratio, where = (each.to(sizes.device, non_blocking=True) for each in drawn)
        sizes = sizes.double()
        area = area * sizes.prod(1, keepdim=True)
        tries = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2).round()  # [B, 10, 2]
        fits = ((tries > 0) & (tries <= sizes[:, None])).all(2)
        first = fits.long().argmax(1)  # argmax returns the first of equal values
        found, box = fits.any(1)[:, None], tries[torch.arange(len(tries), device=first.device), first]
        if few_launches(sizes.device) or not bool(found.all()):
            box = torch.where(found, box, self._central(sizes))
        corner = torch.where(found, where * (sizes - box + 1), (sizes - box) / 2)
        return torch.cat([corner.floor(), box], 1).long()

    def _central(self, sizes: Tensor) -> Tensor:
        """Returns the largest central boxes of allowed shape, at least one pixel large."""
        height, width = sizes.unbind(1)
        shape = width / height
        highest = torch.where(shape < self.ratio[0], (width / self.ratio[0]).round(), height)
        widest = torch.where(shape > self.ratio[1], (height * self.ratio[1]).round(), width)
        return torch.stack([highest, widest], 1).clamp(min=1)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        sizes = parameters.get("sizes")
        if sizes is None:
            sizes = _whole(images, len(images), parameters["area"].device)
        boxes, flip = self.boxes(parameters, sizes), parameters["flip"]
        boxes, flip = (each.to(images.device, non_blocking=True) for each in (boxes, flip))
        return crop_resize(images, boxes, flip, self.size, self.interpolation)

    def make_views(self, images: Tensor, parameters: Parameters, views: int) -> Tensor:
        """Makes several crops of each image at once; see :class:`unlabeled.views.at_once.MakesViews`."""
        sizes = parameters.get("sizes")
        if sizes is None:
            sizes = _whole(images, len(images) * views, images.device)
        else:
            sizes = sizes[:, None].expand(-1, views, -1).flatten(0, 1)
        return crop_views(
            images, self.boxes(parameters, sizes), parameters["flip"], self.size, self.interpolation, views
        )


def _whole(images: Tensor, count: int, device: torch.device) -> Tensor:
    """Returns height and width of ``images`` for so many rows, int64 [count, 2], without a copy to the device."""
    if not few_launches(device):
        return torch.tensor(images.shape[2:]).expand(count, 2)
    return torch.stack([torch.full((count,), side, device=device) for side in images.shape[2:]], 1)


class ColorJitter:
    """Changes brightness, contrast, saturation (multiplicative, as torchvision) and hue, in random order per image.

    Args:
        brightness, contrast, saturation: factors are uniform in [max(0, 1 − value), 1 + value].
        hue: shifts are uniform in [−value, value] turns, at most 0.5.
        probability: share of the images that are changed.
        additive_brightness: adds a value, uniform in [−brightness, brightness], to all pixels, as TensorFlow does:
            SimCLR's first version (google-research/simclr, ``simclrv1``), BYOL.
    """

    coloured = to_some = True

    def __init__(
        self,
        brightness: Strength,
        contrast: Strength,
        saturation: Strength,
        hue: Annotated[float, Interval(ge=0, le=0.5)],
        probability: Share,
        additive_brightness: bool = False,
    ) -> None:
        self.strengths, self.hue, self.probability = (brightness, contrast, saturation), hue, probability
        self.additive_brightness = additive_brightness
        self.ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in self.strengths] + [(-hue, hue)]
        if additive_brightness:
            self.ranges[0] = (-brightness, brightness)

    @property
    def applied_as(self) -> tuple[object, ...]:
        return (self.additive_brightness,)

    def sample(self, count: int, generator: Generator) -> Parameters:
        factors = [_uniform((count,), low, high, generator) for low, high in self.ranges]
        order = torch.rand((count, 4), generator=generator).argsort(1)
        applied = torch.rand(count, generator=generator) < self.probability
        return {"factors": torch.stack(factors, 1).float(), "order": order, "applied": applied}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        order = parameters["order"].masked_fill(~parameters["applied"][:, None], 4)
        order, factors = _beside(images, order, parameters["factors"])
        return color_jitter(images.float(), factors, order, self.additive_brightness).to(images.dtype)


class Grayscale:
    """Removes the colour from a random share of the images."""

    coloured = to_some = True

    def __init__(self, probability: Share) -> None:
        self.probability = probability

    @property
    def applied_as(self) -> tuple[object, ...]:
        return ()

    def sample(self, count: int, generator: Generator) -> Parameters:
        return {"applied": torch.rand(count, generator=generator) < self.probability}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return apply_to_some(images, parameters["applied"], lambda some: some.copy_(luminance(some)))


class Solarize:
    """Inverts the bright values in a random share of the images: v → 1 − v where v ≥ threshold.

    Args:
        threshold: in [0, 1], 128/255 is PIL's 128; or a smallest and a largest one, then uniform for each image.
        probability: share of the images that are changed.
    """

    to_some = True

    def __init__(self, threshold: Threshold | Thresholds, probability: Share) -> None:
        self.low, self.high = (threshold, threshold) if isinstance(threshold, float | int) else threshold
        self.probability = probability

    @property
    def applied_as(self) -> tuple[object, ...]:
        return self.low, self.high

    def sample(self, count: int, generator: Generator) -> Parameters:
        drawn = {"applied": torch.rand(count, generator=generator) < self.probability}
        if self.low < self.high:
            drawn["threshold"] = _uniform((count,), self.low, self.high, generator).float()
        return drawn

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        drawn = parameters.get("threshold", torch.full((len(images),), self.low, device=parameters["applied"].device))
        return apply_to_some(images, parameters["applied"], solarize, drawn)


class Equalize:
    """Equalises the histogram of each channel, as PIL does, in a random share of the images.

    Args:
        probability: share of the images that are changed.
    """

    to_some = True

    def __init__(self, probability: Share) -> None:
        self.probability = probability

    @property
    def applied_as(self) -> tuple[object, ...]:
        return ()

    def sample(self, count: int, generator: Generator) -> Parameters:
        return {"applied": torch.rand(count, generator=generator) < self.probability}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return apply_to_some(images, parameters["applied"], equalize)


class GaussianBlur:
    """Blurs a random share of the images with a Gaussian of random width.

    Args:
        sigma: smallest and largest standard deviation, pixels.
        kernel_fraction: the kernel reaches ``int(size · fraction) // 2`` pixels to each side (SimCLR: a tenth).
        probability: share of the images that are blurred.
    """

    to_some = True

    def __init__(self, sigma: Sigmas, kernel_fraction: Share, probability: Share) -> None:
        self.sigma, self.kernel_fraction, self.probability = sigma, kernel_fraction, probability

    @property
    def applied_as(self) -> tuple[object, ...]:
        return (self.kernel_fraction,)

    def sample(self, count: int, generator: Generator) -> Parameters:
        sigma = _uniform((count,), *self.sigma, generator).float()
        return {"sigma": sigma, "applied": torch.rand(count, generator=generator) < self.probability}

    def plan_warnings(self, pixels: int) -> list[Check]:
        """Checks that the kernel is larger than one pixel and no wider than the image."""
        width = 2 * self._radius(pixels) + 1
        return [
            Check(
                "a blur that fits",
                1 < width <= pixels,
                f"a kernel of {width} pixel{'s' if width > 1 else ''} on views of {pixels}",
                f"it changes nothing: give kernel_fraction={2.1 / pixels:.2g}, or leave blur out"
                if width == 1
                else "it is wider than the view: give kernel_fraction=0.1",
            )
        ]

    def _radius(self, pixels: int) -> int:
        return int(pixels * self.kernel_fraction) // 2

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        radius = self._radius(images.shape[-1])
        return apply_to_some(
            images, parameters["applied"], lambda some, sigma: _blur(some, sigma, radius), parameters["sigma"]
        )


def _blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    height, width = images.shape[2:]
    if not use_sparse_weights(images) and height == width > radius + 1:
        lines = _gaussian_matrix(sigma, radius, width)
        return resize_dense(images, lines, lines)
    rows, columns = (_gaussian(sigma, radius, side) for side in images.shape[2:])
    if use_sparse_weights(images):
        return resize_sparse(images, rows, columns)
    return resize_dense(images, matrix(rows, images.shape[2]), matrix(columns, images.shape[3]))


def _gaussian_matrix(sigma: Tensor, radius: int, pixels: int) -> Tensor:
    """Returns the weights of :func:`_gaussian` for all pixels of a line, [n, pixels, pixels], by arithmetic alone.

    A pixel j is reached from pixel i directly, over the first pixel and over the last one: the radius is below the
    number of pixels.
    """
    number = torch.arange(pixels, device=sigma.device)
    sigma = sigma.clamp(min=1e-3)[:, None, None]
    straight, first, last = (
        number - number[:, None],
        number + number[:, None],
        2 * (pixels - 1) - number - number[:, None],
    )

    def weight(distance: Tensor, there: Tensor) -> Tensor:
        return (-0.5 * (distance / sigma) ** 2).exp() * there

    near = (each.abs() <= radius for each in (straight, first, last))
    weights = weight(straight, next(near))
    weights = weights + weight(first, next(near) & (number > 0)) + weight(last, next(near) & (number < pixels - 1))
    return weights / weights.sum(2, keepdim=True)


def _gaussian(sigma: Tensor, radius: int, pixels: int) -> Taps:
    """Returns a Gaussian of deviation ``sigma`` [n] around each pixel of a line, mirrored at its ends."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = (-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2).exp()
    weight = weight / weight.sum(1, keepdim=True)
    period = max(1, 2 * (pixels - 1))
    pixel = (torch.arange(pixels, device=sigma.device)[:, None] + offset) % period
    pixel = torch.minimum(pixel, period - pixel).int()
    return Taps(pixel.expand(len(sigma), -1, -1), weight[:, None].expand(-1, pixels, -1))


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def apply_to_some(images: Tensor, applied: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Applies ``change`` to some images, in float32; ``images`` are overwritten.

    Where few launches count, all images are changed and unwanted results dropped, so that shapes do not depend on
    ``applied``.

    Args:
        images: [B, 3, h, w].
        applied: bool [B], which images.
        change: maps float32 [n, 3, h, w] and rows of ``parameters`` to [n, 3, h, w]; may overwrite the images.
        parameters: [B] each, on the device of ``applied``.

    Returns:
        [B, 3, h, w].
    """
    if not few_launches(images.device):
        return apply_to_rows(images, applied, change, *parameters)
    chosen, *own = _beside(images, applied, *parameters)
    changed = change(images.to(torch.float32, copy=True), *own).to(images.dtype)
    return torch.where(chosen[:, None, None, None], changed, images)


def apply_to_rows(images: Tensor, applied: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Does the same with the wanted images alone; ``applied`` and ``parameters`` are on the CPU."""
    rows = applied.nonzero().flatten()
    own = (each[rows].to(images.device, non_blocking=True) for each in parameters)
    if len(rows) == len(images):
        return change(images.float(), *own).to(images.dtype)
    if len(rows):
        there = rows.to(images.device, non_blocking=True)
        images.index_copy_(0, there, change(images.index_select(0, there).float(), *own).to(images.dtype))
    return images


def _beside(images: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Returns the parameters on the images' device; those of :mod:`unlabeled.views.draw_ahead` are there already."""
    return [each.to(images.device, non_blocking=True) for each in parameters]

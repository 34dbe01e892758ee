"""Colour operations on batches in [0, 1], each image with its own factor; equal to torchvision's functions."""

from collections.abc import Callable

import torch
from torch import Tensor

from unlabeled.core.few_launches import few_launches

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision
FEW = 32  # images, less than two for each of the 24 orders
_HUGE = 1e30  # times this, any nonzero difference of two values exceeds the clamps below


def luminance(images: Tensor) -> Tensor:
    """Returns the grey value of each pixel, [B, 3, h, w] → [B, 1, h, w]."""
    red, green, blue = images.chunk(3, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shifts the hue of each image by ``shift`` [B], in turns from −0.5 to 0.5 as in torchvision; in place.

    Hue, chroma and value (largest channel) as in HSV, and back by value − chroma · clamp(2 − d, 0, 1), where d is the
    distance of the hue in sixths of a turn from 3, 5 and 1 for red, green and blue, around the circle: at most 3.
    """
    hue, chroma, value = _hexagon(*images.chunk(3, dim=1))
    hue = hue.div_(6).add_(shift[:, None, None, None])
    distance = hue - hue.new_tensor([3 / 6, 5 / 6, 1 / 6]).view(3, 1, 1)  # all channels at once: fewer calls
    distance = distance.sub_(distance.round()).abs_()
    share = distance.mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(value, chroma, share, value=-1, out=images)


def _hexagon(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns hue in sixths of a turn, in [0, 6]; chroma; value.

    The channels are sorted by minimum and maximum; where two are swapped, hue counts from another corner (after S.
    Hocevar's branchless form). ``where`` takes thirty times as long as a product on a CPU.
    """
    larger, smaller = torch.maximum(green, blue), torch.minimum(green, blue)
    corner = (green - blue).mul_(_HUGE).clamp_(-6, 0)  # −6 where blue is larger than green
    not_red = (larger - red).mul_(_HUGE).clamp_(0, 1)  # 1 where red is not the largest
    corner.addcmul_(not_red, corner + 1, value=-2)  # −2 − corner there
    value, middle = torch.maximum(red, larger), torch.minimum(red, larger)
    chroma = value - torch.minimum(red, smaller)
    hue = middle.sub_(smaller).div_(chroma.clamp(min=1 / _HUGE)).add_(corner).abs_()
    return hue, chroma, value


def color_jitter(images: Tensor, factors: Tensor, order: Tensor, additive_brightness: bool = False) -> Tensor:
    """Changes brightness, contrast, saturation and hue of each image, in its own order, clamping after each.

    The images are sorted by the operations that they get next, so that each runs in place on adjacent rows: by all four
    where images are few, and hardly two have the same order anyway; else by two, which makes longer runs of rows.
    Where few launches count, :func:`jitter_all` has the same result.

    Args:
        images: float [B, 3, h, w] in [0, 1].
        factors: [B, 4], multiplicative for brightness, contrast and saturation (1 changes nothing), a shift in turns
            for hue (0 changes nothing). With ``additive_brightness`` the first is added (0 changes nothing).
        order: int64 [B, 4], a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue per image; 4 is no
            operation. Both on the CPU, or where few launches count on the images' device.
        additive_brightness: as TensorFlow's ``random_brightness`` instead of torchvision's.

    Returns:
        [B, 3, h, w], in new memory.
    """
    if few_launches(images.device):
        return jitter_all(images, factors, order, additive_brightness)
    place = torch.arange(len(images))  # the row in which each image is
    for turns in torch.split(order, 4 if len(images) <= FEW else 2, 1):
        by_kind = (turns * 5 ** torch.arange(turns.shape[1])).sum(1).argsort(stable=True)
        images, own, place = images.index_select(0, place[by_kind]), factors[by_kind], by_kind.argsort()
        for kinds in turns[by_kind].unbind(1):
            some, counts = (each.tolist() for each in torch.unique_consecutive(kinds, return_counts=True))
            parts = zip(some, torch.split(images, counts), torch.split(own, counts), strict=True)
            for operation, rows, factor in parts:
                _change(rows, operation, factor, additive_brightness)
    return images.index_select(0, place)


Pixels = tuple[Tensor, Tensor, Tensor]  # red, green and blue, [B, h, w] each


def jitter_all(images: Tensor, factors: Tensor, order: Tensor, additive_brightness: bool = False) -> Tensor:
    """Does the same with all operations on all images: where one has no turn, its factor changes nothing.

    Contrast alone needs a value of the whole image, its mean grey value. So there are two parts, before and after it;
    within each, hue is computed once, and brightness and saturation before and after it. Compiled these are two or
    three kernels, as each channel is a tensor of its own and all tensors have one shape.
    """
    own = [factors[:, operation, None, None] for operation in range(4)]
    turn = torch.stack([_turn(order, operation) for operation in range(4)])[:, :, None, None]  # [4, B, 1, 1]
    contrast, (red, green, blue) = turn[1], images.unbind(1)
    pixels = _without_contrast((red, green, blue), own, turn, turn < contrast, additive_brightness)
    grey = _grey(pixels).mean((1, 2), keepdim=True)
    pixels = _blend(pixels, torch.where(contrast < 4, own[1], 1), grey)
    after = (turn > contrast) & (turn < 4)
    return torch.stack(_without_contrast(pixels, own, turn, after, additive_brightness), 1)


def _turn(order: Tensor, operation: int) -> Tensor:
    """Returns in which turn an operation comes, 0 to 3; 4 where it does not. No search: it becomes part of a kernel."""
    turns = [(order[:, turn] == operation) * (turn - 4) for turn in range(4)]
    return turns[0] + turns[1] + turns[2] + turns[3] + 4


def _without_contrast(pixels: Pixels, factors: list[Tensor], turn: Tensor, wanted: Tensor, additive: bool) -> Pixels:
    """Applies those operations that are ``wanted`` [4, B, 1, 1], each in its turn, on both sides of hue."""
    brightness, _, saturation, hue = turn.unbind(0)

    def saturate(pixels: Pixels, now: Tensor) -> Pixels:
        return _blend(pixels, torch.where(now & wanted[2], factors[2], 1), _grey(pixels))

    def brighten(pixels: Pixels, now: Tensor) -> Pixels:
        factor = torch.where(now & wanted[0], factors[0], 0 if additive else 1)
        red, green, blue = ((each + factor if additive else each * factor).clamp(0, 1) for each in pixels)
        return red, green, blue

    def both(pixels: Pixels, side: Callable[[Tensor], Tensor]) -> Pixels:
        pixels = saturate(pixels, side(saturation) & (saturation < brightness))
        pixels = brighten(pixels, side(brightness))
        return saturate(pixels, side(saturation) & (saturation > brightness))

    pixels = both(pixels, lambda own: own < hue)
    turned = shifted_hue(pixels, factors[3])
    red, green, blue = (torch.where(wanted[3], new, old) for new, old in zip(turned, pixels, strict=True))
    return both((red, green, blue), lambda own: own > hue)


def shifted_hue(pixels: Pixels, shift: Tensor) -> Pixels:
    """Does what :func:`shift_hue` does, channel by channel and in new memory; ``shift`` [B, 1, 1]."""
    hue, chroma, value = _hexagon(*pixels)
    hue = hue / 6 + shift

    def channel(number: int) -> Tensor:
        distance = hue - number / 6
        return value - chroma * ((distance - distance.round()).abs() * -6 + 2).clamp(0, 1)

    return channel(3), channel(5), channel(1)


def _blend(pixels: Pixels, factor: Tensor, base: Tensor) -> Pixels:
    """Returns factor · image + (1 − factor) · base, clamped; a factor of 1 changes nothing."""
    base = base * (1 - factor)
    red, green, blue = ((each * factor + base).clamp(0, 1) for each in pixels)
    return red, green, blue


def _grey(pixels: Pixels) -> Tensor:
    red, green, blue = pixels
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def _change(images: Tensor, operation: int, factors: Tensor, additive_brightness: bool) -> Tensor:
    """Applies one operation to all of ``images``, in place; 4 is none.

    Brightness, contrast and saturation share one formula: factor · image + (1 − factor) · base, where base is black,
    the mean grey value of the image, or its grey picture.
    """
    if operation == 4:
        return images
    if operation == 3:
        return shift_hue(images, factors[:, 3])
    factor = factors[:, operation, None, None, None]
    if operation == 0:
        return (images.add_(factor) if additive_brightness else images.mul_(factor)).clamp_(0, 1)
    grey = luminance(images) if operation == 2 else luminance(images.mean((2, 3), keepdim=True))
    return images.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts bright values: v → 1 − v where v ≥ ``threshold`` [B] in [0, 1]; [B, C, h, w], in place."""
    bright = (images - threshold[:, None, None, None]).mul_(_HUGE).add_(1).clamp_(0, 1)
    return images.addcmul_(bright, 1 - 2 * images)


def equalize(images: Tensor) -> Tensor:
    """Equalises the histogram of each channel as PIL's ``ImageOps.equalize`` does.

    Args:
        images: float [B, C, h, w] in [0, 1]; rounded to 256 levels first.

    Returns:
        [B, C, h, w]; a channel with one value, or almost, stays as it is.
    """
    levels = (images * 255).round().long().flatten(2)
    return (equalizing_table(levels).gather(2, levels) / 255).to(images.dtype).view_as(images)


def equalizing_table(levels: Tensor) -> Tensor:
    """Returns the level that each of 256 levels becomes, int64 [B, C, 256], for ``levels`` int64 [B, C, pixels]."""
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255  # pixels per level of the result
    darker = counts.cumsum(2) - counts
    table = (darker + step // 2) // step.clamp(min=1)
    return torch.where(step == 0, torch.arange(256, device=levels.device), table.clamp(max=255))

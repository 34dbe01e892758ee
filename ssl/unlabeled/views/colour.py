"""Colour operations on batches in [0, 1], each image with its own factor, equal to torchvision's functional ones."""

import torch
from kornia.enhance import adjust_hue
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision


def luminance(images: Tensor) -> Tensor:
    """Grey value of each pixel, [B, 3, h, w] → [B, 1, h, w]."""
    weights = images.new_tensor(LUMA)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image by ``shift`` [B], in turns from −0.5 to 0.5 as torchvision counts it."""
    turned: Tensor = adjust_hue(images, shift * (2 * torch.pi))  # kornia counts in radians
    return turned


def jitter(images: Tensor, factors: Tensor, order: Tensor, additive_brightness: bool = False) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in its own order, clamping after each.

    Args:
        images: float [B, 3, h, w] in [0, 1].
        factors: [B, 4], multiplicative for brightness, contrast and saturation (1 changes nothing), a shift in turns
            for hue (0 changes nothing). With ``additive_brightness`` the first is what is added (0 changes nothing).
        order: int64 [B, 4] **on the CPU**, a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue per image.
        additive_brightness: brightness as TensorFlow's ``random_brightness`` instead of torchvision's.

    Returns:
        [B, 3, h, w].
    """
    for turn in range(4):
        operation = order[:, turn]
        images = _blend(images, factors, operation.to(images.device), additive_brightness)
        rows = (operation == 3).nonzero().flatten().to(images.device)  # order is on the CPU: no wait for the device
        if len(rows):
            images = images.index_copy(0, rows, shift_hue(images[rows], factors[rows, 3]))
    return images


def equalize(images: Tensor) -> Tensor:
    """Spread the values of each channel so that their histogram is as even as PIL's ``ImageOps.equalize`` makes it.

    Args:
        images: float [B, C, h, w] in [0, 1]; rounded to 256 levels first.

    Returns:
        [B, C, h, w]; a channel with one value, or nearly so, stays as it is.
    """
    levels = (images * 255).round().long().flatten(2)  # [B, C, pixels]
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255  # pixels per level of the result
    darker = counts.cumsum(2) - counts
    table = (darker + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table.clamp(max=255))
    return (table.gather(2, levels) / 255).to(images.dtype).view_as(images)


def _blend(images: Tensor, factors: Tensor, operation: Tensor, additive_brightness: bool) -> Tensor:
    """Brightness, contrast and saturation are one formula: factor · image + (1 − factor) · what factor 0 leaves.

    Factor 0 leaves black, the mean grey value of the image, or its grey picture. Rows whose turn is hue get factor 1,
    and so do those whose brightness is added to.
    """
    blended = (operation < 3) & (operation >= int(additive_brightness))
    factor = factors.gather(1, operation[:, None]).where(blended[:, None], torch.ones_like(factors[:, :1]))
    grey = luminance(images)
    base = torch.where(_is(operation, 1), grey.mean((2, 3), keepdim=True), grey)
    base = torch.where(_is(operation, 0), torch.zeros_like(base), base)
    factor = factor[:, :, None, None]
    base = (1 - factor) * base
    if additive_brightness:
        base = base + factors[:, :1, None, None] * _is(operation, 0)
    return (factor * images + base).clamp(0, 1)


def _is(operation: Tensor, which: int) -> Tensor:
    return (operation == which)[:, None, None, None]

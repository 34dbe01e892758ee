"""Operations of RandAugment on images in 8 bits, each image with its own value; equal to torchvision's functions.

Images are float32 [B, C, h, w] of whole levels from 0 to 255. Results are whole levels again, cut off and not rounded,
as torchvision does with uint8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.views.kernels.colour import equalizing_table

LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
TRANSLATION = 150 / 331  # largest share of a side, torchvision's RandAugment: AutoAugment's 150 pixels of 331


def look_up(levels: Tensor, table: Tensor) -> Tensor:
    """Replaces each level by what ``table`` [B, C, 256] has for it."""
    return table.gather(2, levels.long().flatten(2)).view_as(levels)


def _all_levels(levels: Tensor) -> Tensor:
    return torch.arange(256.0, device=levels.device).expand(*levels.shape[:2], 256)


def brightness_table(levels: Tensor, value: Tensor) -> Tensor:
    """Blends with black by 1 + ``value`` [B]."""
    return (_shares(value)[0][:, None, None] * _all_levels(levels)).clamp(0, 255).floor()


def contrast_table(levels: Tensor, value: Tensor) -> Tensor:
    """Blends with the mean grey level by 1 + ``value``."""
    factor, rest = (each[:, None, None] for each in _shares(value))
    return (factor * _all_levels(levels) + rest * grey(levels).mean((2, 3))[:, :, None]).clamp(0, 255).floor()


def posterize_table(levels: Tensor, value: Tensor) -> Tensor:
    """Keeps the first ``value`` bits, 1 to 8."""
    step = (2 ** (8 - value.float()))[:, None, None]
    return (_all_levels(levels) / step).floor() * step


def solarize_table(levels: Tensor, value: Tensor) -> Tensor:
    """Inverts the levels from ``value`` on."""
    every = _all_levels(levels)
    return torch.where(every >= value.float()[:, None, None], 255 - every, every)


def autocontrast_table(levels: Tensor, value: Tensor) -> Tensor:
    """Stretches each channel to all levels; ``value`` does not matter."""
    low, high, every = levels.amin((2, 3))[:, :, None], levels.amax((2, 3))[:, :, None], _all_levels(levels)
    stretched = ((every - low) * (255 / (high - low).clamp(min=1))).clamp(0, 255).floor()
    return torch.where(high > low, stretched, every)


def equalize_table(levels: Tensor, value: Tensor) -> Tensor:
    """Equalises the histogram of each channel; ``value`` does not matter."""
    return equalizing_table(levels.long().flatten(2)).float()


def grey(levels: Tensor) -> Tensor:
    """Returns the grey levels, [B, 1, h, w]."""
    red, green, blue = levels.chunk(3, 1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).floor()


def smoothed(levels: Tensor) -> Tensor:
    """Blurs all pixels but those of the border: a fifth of 13 is the pixel, 8 neighbours have the rest."""
    if min(levels.shape[2:]) < 3:
        return levels
    kernel = torch.ones(levels.shape[1], 1, 3, 3, device=levels.device)
    kernel[:, :, 1, 1] = 5
    inner = F.conv2d(levels, kernel / 13, groups=levels.shape[1]).round()
    result = levels.clone()
    result[:, :, 1:-1, 1:-1] = inner
    return result


def blend(levels: Tensor, base: Tensor, value: Tensor) -> Tensor:
    """Returns (1 + value) · levels − value · base."""
    factor, rest = (each[:, None, None, None] for each in _shares(value))
    return (factor * levels + rest * base).clamp(0, 255).floor()


def _shares(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns 1 + ``value`` and −``value`` as torchvision rounds them, each from float64."""
    return (1 + value).float(), (1 - (1 + value)).float()


def moved(levels: Tensor, matrix: Tensor) -> Tensor:
    """Takes each pixel from where ``matrix`` [B, 2, 3] says, the nearest one there; black from outside.

    Columns and rows are counted from the centre of the image, in pixels.
    """
    height, width = levels.shape[2:]
    columns = torch.linspace(-width * 0.5 + 0.5, width * 0.5 - 0.5, width, device=levels.device)
    rows = torch.linspace(-height * 0.5 + 0.5, height * 0.5 - 0.5, height, device=levels.device)
    places = torch.stack(
        [
            columns.expand(height, width),
            rows[:, None].expand(height, width),
            torch.ones_like(columns).expand(height, width),
        ],
        2,
    ).view(1, -1, 3)
    # not torch.tensor: the host would wait for a GPU
    half = torch.stack([torch.full((), 0.5 * side, device=levels.device) for side in (width, height)])
    grid = places.expand(len(levels), -1, -1).bmm(matrix.float().transpose(1, 2) / half)
    return F.grid_sample(
        levels, grid.view(-1, height, width, 2), mode="nearest", padding_mode="zeros", align_corners=False
    )


def shear_matrix(value: Tensor, height: int, width: int, upright: bool) -> Tensor:
    """Shears by ``value`` [B] pixels a pixel, along rows or ``upright`` along columns; the upper left corner stays."""
    one, none = torch.ones_like(value), torch.zeros_like(value)
    if upright:
        return _matrix([one, none, none], [value, one, value * width / 2])
    return _matrix([one, value, value * height / 2], [none, one, none])


def translation_matrix(value: Tensor, height: int, width: int, upright: bool) -> Tensor:
    """Moves by ``value`` [B] times :data:`TRANSLATION` of the side, whole pixels."""
    one, none = torch.ones_like(value), torch.zeros_like(value)
    pixels = (value * (TRANSLATION * (height if upright else width))).trunc()
    if upright:
        return _matrix([one, none, none], [none, one, -pixels])
    return _matrix([one, none, -pixels], [none, one, none])


def rotation_matrix(value: Tensor) -> Tensor:
    """Turns by ``value`` [B] degrees against the clock."""
    angle = value.deg2rad()
    cosine, sine, none = angle.cos(), angle.sin(), torch.zeros_like(value)
    return _matrix([cosine, -sine, none], [sine, cosine, none])


def _matrix(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack(first, 1), torch.stack(second, 1)], 1)

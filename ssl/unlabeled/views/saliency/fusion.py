"""Fuses several saliency maps into one that a threshold of 0.5 turns into a mask."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from unlabeled.views.saliency.maps import MAPS, blur, scale_to_unit

SMOOTHING = 0.03  # sigma as a share of the side: about a pixel of CIFAR. Our choice, by eye
GENEROSITY = 0.8  # factor on Otsu's threshold: rather keeps background than loses half an animal. Our choice
FILLING_ROUNDS = 2
BINS = 64  # of the histogram for Otsu's threshold


def fuse(images: Tensor, maps: Sequence[str], centre_sigma: float | None) -> Tensor:
    """Averages several maps, applies a centre prior, smooths, fills holes, and stretches so that 0.5 separates best.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        maps: names in ``MAPS``, at least one.
        centre_sigma: of a Gaussian prior, as a share of the side; None for no prior. It assumes that photographers
            centre objects.

    Returns:
        [B, H, W] in [0, 1].
    """
    fused = torch.stack([MAPS[name](images) for name in maps]).mean(0)
    if centre_sigma is not None:
        fused = fused * _centre_prior(fused, centre_sigma)
    return stretch_at_otsu(fill_holes(scale_to_unit(blur(fused, SMOOTHING * fused.shape[-1]))))


def _centre_prior(maps: Tensor, sigma: float) -> Tensor:
    """Returns a Gaussian of the distance from the centre, [H, W], about 1 there."""
    lines = [(torch.arange(side, device=maps.device) + 0.5) / side - 0.5 for side in maps.shape[1:]]
    y, x = ((-line.square() / (2 * sigma**2)).exp() for line in lines)
    return y[:, None] * x


def fill_holes(maps: Tensor) -> Tensor:
    """Raises each pixel [B, H, W] to the lowest maximum on any path from it to the border.

    Grey-level reconstruction (Vincent 1993), by the sweeps of ``saliency_maps.minimum_barrier``: a window inside a car
    becomes as salient as the car.
    """
    values = maps.permute(1, 2, 0).contiguous()
    level = torch.ones_like(values)
    for edge in (0, -1):
        level[edge], level[:, edge] = values[edge], values[:, edge]
    for _ in range(FILLING_ROUNDS):
        for axis in (0, 1):
            value, flood = values.movedim(axis, 0), level.movedim(axis, 0)
            down = range(len(value))
            for before, here in (*pairwise(down), *pairwise(reversed(down))):
                flood[here] = torch.minimum(flood[here], torch.maximum(flood[before], value[here]))
    return level.permute(2, 0, 1)


def stretch_at_otsu(maps: Tensor) -> Tensor:
    """Stretches maps [B, H, W] in [0, 1] piecewise linearly: ``GENEROSITY`` · Otsu's threshold is moved to 0.5."""
    threshold = (GENEROSITY * otsu(maps))[:, None, None]
    return torch.where(maps < threshold, maps / threshold / 2, 1 - (1 - maps) / (1 - threshold) / 2)


def otsu(maps: Tensor) -> Tensor:
    """Returns the threshold [B] that best separates the values of [B, H, W] into two classes (Otsu 1979)."""
    index = (maps.flatten(1) * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(len(maps), BINS, device=maps.device)
    share = counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float)) / index.shape[1]
    centres = (torch.arange(BINS, device=maps.device) + 0.5) / BINS
    below, moment = share.cumsum(1), (share * centres).cumsum(1)
    between = (moment[:, -1:] * below - moment).square() / (below * (1 - below)).clamp(min=1e-6)
    return (between[:, :-1].argmax(1) + 1) / BINS  # a threshold after the last bin separates nothing

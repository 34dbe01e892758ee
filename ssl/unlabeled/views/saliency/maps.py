"""Estimates where the object is from pixels alone, by handcrafted saliency maps of a whole batch.

Each map is a function float [B, 3, H, W] in [0, 1] → [B, H, W] in [0, 1], 0 for an image of one colour; nothing is
trained or random. Colours are compared in CIE Lab. All of it is batched: the same code runs on a GPU.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from kornia.color import rgb_to_lab
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn import functional as F

Map = Callable[[Tensor], Tensor]

BORDER = 0.1  # width of the border band, share of the side; Zhang et al. 2015, section 4
LEVELS = 12  # per RGB channel; Cheng et al. 2011, section 3
BARRIER_ROUNDS = 2  # our choice; the paper has three passes over the image


def spectral_residual(images: Tensor) -> Tensor:
    """Returns the unexpected part of the grey image's log spectrum (Hou and Zhang 2007).

    The paper's images are 64 pixels wide, and so is the usual working resolution here.
    """
    spectrum = torch.fft.fft2(images.mean(1))
    log_amplitude = (spectrum.abs() + 1e-6).log()
    around = F.avg_pool2d(F.pad(log_amplitude[:, None], (1, 1, 1, 1), "circular"), 3, 1)[:, 0]
    residual = torch.polar((log_amplitude - around).exp(), spectrum.angle())
    energy = torch.fft.ifft2(residual).abs().square()
    flat = images.flatten(1).amax(1) - images.flatten(1).amin(1) < 1e-6  # constant images: only rounding errors
    return scale_to_unit(blur(energy, energy.shape[-1] / 25)).where(~flat[:, None, None], 0.0)


def frequency_tuned(images: Tensor) -> Tensor:
    """Returns the distance of the slightly blurred colour from the mean colour (Achanta et al. 2009, equation 4)."""
    lab = _lab(images)
    taps = lab.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(lab, (2, 2, 2, 2), "replicate").flatten(0, 1)[:, None]  # no grouped convolution: it is slow on a CPU
    smooth = F.conv2d(padded, (taps[:, None] * taps)[None, None]).view_as(lab)  # the paper's 5 × 5 binomial kernel
    return scale_to_unit((lab.mean((2, 3), keepdim=True) - smooth).square().sum(1).sqrt())


def boundary_distance(images: Tensor) -> Tensor:
    """Returns the Mahalanobis distance from the border colours (MB+; Zhang et al. 2015, equations 7 and 8).

    The four distances are added without the largest one, so that an object may touch one side.
    """
    lab = _lab(images)
    band = max(1, round(BORDER * images.shape[-1]))
    sides = (lab[:, :, :band], lab[:, :, -band:], lab[..., :band], lab[..., -band:])
    maps = torch.stack([_colour_distance(lab, side.flatten(2)) for side in sides], 1)
    return scale_to_unit(maps.sum(1) - maps.amax(1))


def _colour_distance(lab: Tensor, reference: Tensor) -> Tensor:
    """Returns the Mahalanobis distance of ``lab`` [B, 3, H, W] from ``reference`` [B, 3, n], scaled to maximum 1."""
    mean = reference.mean(2)
    centred = reference - mean[:, :, None]
    covariance = centred @ centred.mT / reference.shape[2] + 4.0 * torch.eye(3, device=lab.device)  # 2 units of noise
    difference = lab.flatten(2) - mean[:, :, None]
    squared = (difference * torch.linalg.solve(covariance, difference)).sum(1).clamp(min=0)
    distance: Tensor = squared.sqrt().view(len(lab), *lab.shape[2:])
    return distance / distance.amax((1, 2), keepdim=True).clamp(min=1e-6)


def global_contrast(images: Tensor) -> Tensor:
    """Returns the Lab distance of a pixel from all colours, weighted by their frequency (Cheng et al. 2011, HC).

    Colours are quantised to 12³. The paper also drops rare colours and smooths among similar ones; this does not.
    """
    levels = (images * LEVELS).long().clamp(max=LEVELS - 1)
    colour = (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]
    index = colour.flatten(1)
    count = torch.zeros(len(images), LEVELS**3, device=images.device).scatter_add_(
        1, index, torch.ones_like(index, dtype=torch.float)
    )
    contrast = count @ _palette_distance(images.device) / index.shape[1]
    return scale_to_unit(contrast.gather(1, index).view(colour.shape))


def _palette_distance(device: torch.device) -> Tensor:
    """Returns the Lab distances [12³, 12³] between the centres of the quantised colours."""
    centres = (torch.arange(LEVELS, device=device) + 0.5) / LEVELS
    palette = torch.cartesian_prod(centres, centres, centres).T.reshape(1, 3, -1, 1)
    points = _lab(palette)[0, :, :, 0].T
    return torch.cdist(points, points)


def minimum_barrier(images: Tensor) -> Tensor:
    """Returns the least change of a channel on a path to the border, over Lab's channels (Zhang et al. 2015, FastMBD).

    The paper scans pixel by pixel; here whole lines are swept down, up, right and left, twice.
    """
    values = _lab(images).permute(2, 3, 0, 1).flatten(2).contiguous()  # [H, W, 3B]: rows and columns are both slices
    distance = torch.full_like(values, torch.inf)
    distance[0] = distance[-1] = distance[:, 0] = distance[:, -1] = 0
    highest, lowest = values.clone(), values.clone()
    for _ in range(BARRIER_ROUNDS):
        for axis in (0, 1):
            lines = [state.movedim(axis, 0) for state in (values, distance, highest, lowest)]
            down = range(len(lines[0]))
            _sweep(down, *lines)
            _sweep(down[::-1], *lines)
    by_channel = distance.view(*distance.shape[:2], len(images), 3)
    return scale_to_unit(by_channel.sum(3).permute(2, 0, 1))


def _sweep(order: range, values: Tensor, distance: Tensor, highest: Tensor, lowest: Tensor) -> None:
    """Updates each line from the line before it; ``highest`` and ``lowest`` are the extremes on the best path."""
    for before, here in pairwise(order):
        high = torch.maximum(highest[before], values[here])
        low = torch.minimum(lowest[before], values[here])
        better = high - low < distance[here]
        distance[here] = torch.where(better, high - low, distance[here])
        highest[here] = torch.where(better, high, highest[here])
        lowest[here] = torch.where(better, low, lowest[here])


MAPS: dict[str, Map] = {
    "spectral_residual": spectral_residual,
    "frequency_tuned": frequency_tuned,
    "boundary_distance": boundary_distance,
    "global_contrast": global_contrast,
    "minimum_barrier": minimum_barrier,
}


def scale_to_unit(maps: Tensor) -> Tensor:
    """Scales each map so that its smallest value is 0 and its largest 1; a constant map becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def _lab(images: Tensor) -> Tensor:
    lab: Tensor = rgb_to_lab(images)
    return lab


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Blurs [B, H, W] with a Gaussian, ``sigma`` in pixels."""
    taps = 2 * max(1, round(3 * sigma)) + 1
    blurred: Tensor = gaussian_blur2d(maps[:, None], (taps, taps), (sigma, sigma), "reflect")
    return blurred[:, 0]

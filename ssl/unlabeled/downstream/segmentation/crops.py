"""What a segmenter sees: random crops for training, windows that slide over a test image."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.downstream.segmentation.label_maps import IGNORED

Pair = tuple[Tensor, Tensor]  # image float [3, h, w], labels int64 [h, w]


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes float [3, h, w] bilinearly, antialiased."""
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def shorter_side(image: Tensor, size: int) -> Tensor:
    """Resizes float [3, h, w] until its shorter side is ``size``; the aspect stays."""
    height, width = image.shape[1:]
    factor = size / min(height, width)
    return resized(image, max(size, round(height * factor)), max(size, round(width * factor)))


def random_crop(pair: Pair, size: int, scale: tuple[float, float], generator: torch.Generator) -> Pair:
    """Resizes to ``size`` times a random factor, takes a random ``size`` × ``size`` crop, flips it by half.

    What lies beyond the image is 0 in the picture, which is the mean after normalising, and IGNORED in the labels.
    """
    image, labels = pair
    low, high = scale
    factor = low + (high - low) * float(torch.rand((), generator=generator))
    image = shorter_side(image, max(1, round(size * factor)))
    height, width = image.shape[1:]
    labels = F.interpolate(labels[None, None].float(), (height, width), mode="nearest")[0, 0].long()
    below, right = max(0, size - height), max(0, size - width)
    image, labels = F.pad(image, (0, right, 0, below)), F.pad(labels, (0, right, 0, below), value=IGNORED)
    top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in image.shape[1:])
    image, labels = (each[..., top : top + size, left : left + size] for each in (image, labels))
    if bool(torch.rand((), generator=generator) < 0.5):
        image, labels = image.flip(-1), labels.flip(-1)
    return image, labels


def windows(height: int, width: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields top and left of windows that cover an image; the last of a row or column ends at the border."""
    for top in _starts(height, size, stride):
        for left in _starts(width, size, stride):
            yield top, left


def _starts(side: int, size: int, stride: int) -> list[int]:
    last = max(0, side - size)
    return sorted({*range(0, last, stride), last})


def slide(logits: Callable[[Tensor], Tensor], image: Tensor, classes: int, size: int, stride: int) -> Tensor:
    """Returns probabilities [classes, h, w] of an image [3, h, w], the mean over all windows that see a pixel.

    Args:
        logits: of images [1, 3, size, size] → [1, classes, size, size].
        image: normalised, each side at least ``size``.
        classes: of the logits.
        size: of a window.
        stride: between windows.
    """
    total = image.new_zeros(classes, *image.shape[1:])
    seen = image.new_zeros(image.shape[1:])
    for top, left in windows(image.shape[1], image.shape[2], size, stride):
        part = image[:, top : top + size, left : left + size]
        total[:, top : top + size, left : left + size] += logits(part[None])[0].softmax(dim=0)
        seen[top : top + size, left : left + size] += 1
    return total / seen

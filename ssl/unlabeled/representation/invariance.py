"""Measures how little features change under one augmentation, compared with the difference between images."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.views.key import ViewKey
from unlabeled.views.operations import ColorJitter, GaussianBlur, Grayscale, Operation, RandomResizedCrop, Solarize
from unlabeled.views.pipeline import Views

# Each on every image. Crop: SimCLR, arXiv:2002.05709; jitter, blur: MoCo v2, arXiv:2003.04297; solarize: BYOL,
# arXiv:2006.07733
STRENGTHS = {
    "crop": "area 0.08 to 1, width / height 3/4 to 4/3",
    "flip": "horizontal",
    "colour jitter": "brightness, contrast, saturation 0.4, hue 0.1",
    "grayscale": "luminance",
    "blur": "σ 0.1 to 2 pixels, kernel a tenth of the side",
    "solarize": "from 128/255 on",
}


def augmentations(size: int) -> dict[str, Operation]:
    """Returns the single augmentations at the strengths above, for images of ``size`` pixels."""
    crop = RandomResizedCrop(size, (0.08, 1.0), (3 / 4, 4 / 3), "bicubic", flip=0.0)
    flip = RandomResizedCrop(size, (1.0, 1.0), (1.0, 1.0), "bicubic", flip=1.0)
    made: list[Operation] = [
        crop,
        flip,
        ColorJitter(0.4, 0.4, 0.4, 0.1, probability=1.0),
        Grayscale(1.0),
        GaussianBlur((0.1, 2.0), 0.1, probability=1.0),
        Solarize(128 / 255, 1.0),
    ]
    return dict(zip(STRENGTHS, made, strict=True))


def invariance(features: Tensor, augmented: Tensor) -> float:
    """Returns the cosine similarity of image and augmented image, relative to that of different images.

    (s − d) / (1 − d), with s the mean over images and d the mean over pairs of an image and another augmented image. 1:
    invariant; 0: as different as two images; values below 0 are possible.

    Args:
        features: [N, D] of images.
        augmented: [N, D] of the same images, augmented.

    Returns:
        NaN if all images have the same direction, up to rounding.

    Raises:
        ValueError: fewer than two images.
    """
    n = len(features)
    if n < 2:
        raise ValueError("invariance is relative to different images: give at least two")
    x, y = (F.normalize(each.double(), dim=1) for each in (features, augmented))
    same = (x * y).sum(1)
    different = (x.sum(0) @ y.sum(0) - same.sum()) / (n * (n - 1))
    room = 1 - float(different)
    return float(same.mean() - different) / room if room > 100 * torch.finfo(features.dtype).eps else float("nan")


def augment_each(views: Views, images: Tensor, key: ViewKey) -> Iterator[tuple[str, Tensor]]:
    """Yields images under each single augmentation, starting from the images that evaluation uses.

    Args:
        views: the pipeline that made ``images``.
        images: [B, 3, h, w], on any device; they stay as they are.
        key: of the draws, made for all its images; ``images`` are those from ``key.first`` on.

    Yields:
        Names, and images [B, C, h, w]; colour augmentations only if images have colours.
    """
    pixels, mine = views.to_pixels(images), slice(key.first, key.first + len(images))
    for number, (name, operation) in enumerate(augmentations(pixels.shape[-1]).items()):
        if views.channels != 3 and getattr(operation, "coloured", False):
            continue
        drawn = operation.sample(key.total, key.generator(number))
        rows = {parameter: values[mine] for parameter, values in drawn.items()}
        yield name, views.to_views(operation.apply(pixels.clone(), rows))

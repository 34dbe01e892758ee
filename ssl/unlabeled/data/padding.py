"""Pads images of several sizes into one tensor: each lies in the upper left corner of a canvas of the largest size."""

import torch
from torch import Tensor

from unlabeled.objective import Batch


def pad_to_largest(images: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stacks images into one tensor, padded to the largest size.

    Args:
        images: uint8 [C, h, w] each, one or more, on one device.

    Returns:
        uint8 [B, C, largest h, largest w], 0 beside and below an image, and the height and width of each, int64 [B, 2];
        None instead of sizes where all images have one size.
    """
    sizes = [tuple(image.shape[1:]) for image in images]
    if len(set(sizes)) == 1:
        return torch.stack(images), None
    made = images[0].new_zeros(len(images), len(images[0]), *(max(sides) for sides in zip(*sizes, strict=True)))
    for place, image, (height, width) in zip(made, images, sizes, strict=True):
        place[:, :height, :width] = image
    return made, torch.tensor(sizes, device=made.device)


def image_sizes(images: Tensor, sizes: Tensor | None) -> Tensor:
    """Returns height and width of each image of [B, 3, H, W], int64 [B, 2] on its device; None: all fill H × W."""
    if sizes is None:
        sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
    return sizes.to(images.device)


def batch_to_device(batch: Batch, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    """Copies images and sizes of a batch to a device."""
    return batch.images.to(device), None if batch.sizes is None else batch.sizes.to(device)

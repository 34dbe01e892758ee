"""Pads images of several sizes into one tensor: each lies in the upper left corner of a canvas of the largest size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlabeled.core.seeding import to_device
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
        return to_device(torch.tensor(images.shape[2:]), images.device).expand(len(images), 2)
    return sizes.to(images.device, non_blocking=True)


def batch_to_device(batch: Batch, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    """Copies images and sizes of a batch to a device; the host does not wait for it."""
    device = torch.device(device)
    return _moved(batch.images, device), None if batch.sizes is None else _moved(batch.sizes, device)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    return to_device(values, device) if values.device.type == "cpu" else values.to(device)


class JoinedImages:
    """Images of several sizes beside each other on a device, of which it makes batches in a few kernels.

    One after the other they would take one kernel each.

    Args:
        images: uint8 [C, h, w] each, one or more, of the same C.
        device: where they are copied to.
    """

    def __init__(self, images: Sequence[Tensor], device: torch.device) -> None:
        self.channels, self.device = len(images[0]), device
        self.sizes = torch.tensor([image.shape[1:] for image in images])  # int64 [M, 2], on the CPU
        lengths = self.channels * self.sizes.prod(1)
        self.starts, self.widest = lengths.cumsum(0) - lengths, int(self.sizes[:, 1].max())
        # a line of the widest image can be read from each place, whatever lies there
        self._bytes = torch.zeros(int(lengths.sum()) + self.widest, dtype=torch.uint8, device=device)
        for start, image in zip(self.starts.tolist(), images, strict=True):
            self._bytes[start : start + image.numel()].copy_(image.flatten())

    def take(self, positions: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Returns what :func:`pad_to_largest` returns for the images at these positions."""
        rows = torch.tensor(positions, dtype=torch.long)
        sizes = self.sizes[rows]
        largest = sizes.amax(0)
        facts = to_device(torch.cat([self.starts[rows, None], sizes], 1), self.device)
        first, height, width = facts[:, :, None, None].unbind(1)  # [B, 1, 1] each
        row, column = (torch.arange(int(side), device=self.device) for side in largest)
        channel = torch.arange(self.channels, device=self.device)[:, None]
        line = first + (channel * height + torch.minimum(row, height - 1)) * width  # [B, C, H], where it begins
        made = self._bytes.unfold(0, len(column), 1).index_select(0, line.flatten()).view(*line.shape, -1)
        if bool((sizes == largest).all()):
            return made, None
        inside = (row < height)[..., None] & (column < width)[:, :, None]  # [B, 1, H, W]
        return made.mul_(inside), facts[:, 1:]

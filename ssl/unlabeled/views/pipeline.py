"""From a batch of decoded images to the views that an objective compares."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlabeled.data.canvas import sizes_of
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.views.background import RemoveBackground
from unlabeled.views.crop import Interpolation, crop_resize
from unlabeled.views.key import ViewKey
from unlabeled.views.masks import open_masks
from unlabeled.views.operations import Operation


@dataclass(frozen=True)
class ViewGroup:
    """Views that are drawn alike: how many, and the operations in order."""

    count: int
    operations: Sequence[Operation]


class Views(nn.Module):
    """All views of a batch, made on the device where the images are.

    Args:
        size: height and width of the image that evaluation sees, pixels.
        groups: what is drawn, in order; a later group may make smaller crops.
        mean, std: per channel, subtracted and divided at the very end; None leaves values in [0, 1].
        evaluation_crop: central share of the image's side that evaluation keeps before resizing to ``size``.
        evaluation_interpolation: ``bilinear`` or ``bicubic``.
        masks: file of foreground masks that every ``RemoveBackground`` of the groups reads; None for none.

    Raises:
        UserError: the groups read another file, or none.
    """

    def __init__(
        self,
        size: int,
        groups: Sequence[ViewGroup],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        evaluation_crop: float,
        evaluation_interpolation: Interpolation,
        masks: str | None = None,
    ) -> None:
        super().__init__()
        self.size, self.groups = size, groups
        self.mean, self.std = mean, std
        self.evaluation_crop, self.evaluation_interpolation = evaluation_crop, evaluation_interpolation
        self.masks = masks
        steps = [step for group in groups for step in group.operations if isinstance(step, RemoveBackground)]
        if {masks} - {None} != {step.masks for step in steps} - {None}:
            raise UserError(
                f"views.masks={masks}: RemoveBackground in views.groups must read it (masks: ${{views.masks}})"
            )

    def require_masks(self, source: Source) -> None:
        """Raise UserError if there are to be masks and they are missing or not those of ``source``."""
        if self.masks is not None:
            open_masks(self.masks).require(source, self.masks)

    @torch.no_grad()
    def forward(
        self, images: Tensor, ids: Tensor, key: ViewKey, first: int | None = None, sizes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Draw and make the views.

        Args:
            images: uint8 [B, 3, H, W], the rows ``key.first`` … ``key.first + B`` of the global batch.
            ids: int64 [B], of the images in their source.
            key: names the draws.
            first: how many of the first views are made; all where None.
            sizes: int64 [B, 2], height and width of each image; None: every image fills H × W.

        Returns:
            One float32 [B, 3, h, w] per view.

        Raises:
            UserError: images of another type or shape.
        """
        if sizes is not None:
            raise NotImplementedError("views of images of several sizes")
        scaled = _scaled(images)
        ids = ids if self.masks is None else ids.cpu()  # as the masks: wait for a GPU once, not in each view
        operations = [group.operations for group in self.groups for _ in range(group.count)][:first]
        return tuple(self._view(scaled, ids, key, number, steps) for number, steps in enumerate(operations))

    def _view(self, images: Tensor, ids: Tensor, key: ViewKey, number: int, operations: Sequence[Operation]) -> Tensor:
        generator = key.generator(number)
        mine = slice(key.first, key.first + len(images))
        for operation in operations:
            drawn = operation.sample(key.total, images.shape[2], images.shape[3], generator)
            images = operation.apply(images, {name: values[mine] for name, values in drawn.items()} | {"ids": ids})
        return self._normalise(images)

    @torch.no_grad()
    def plain(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """What evaluation sees: uint8 [B, 3, H, W] → float32 [B, 3, size, size], nothing random; errors as forward.

        ``sizes`` as in forward: each image's own centre is seen.
        """
        scaled, frames = _scaled(images), sizes_of(images, sizes)
        sides = (frames.amin(1).double() * self.evaluation_crop).round().long().clamp(min=1)
        margins = ((frames - sides[:, None]) / 2).round().long()  # half a pixel to even, as torchvision's CenterCrop
        boxes = torch.cat([margins, sides[:, None].expand(-1, 2)], 1)
        flip = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return self._normalise(crop_resize(scaled, boxes, flip, self.size, self.evaluation_interpolation))

    def as_pixels(self, views: Tensor) -> Tensor:
        """Views [B, 3, h, w] back to values in [0, 1], to look at; what lies outside is clamped."""
        if self.mean is not None and self.std is not None:
            mean, std = views.new_tensor(self.mean)[:, None, None], views.new_tensor(self.std)[:, None, None]
            views = views * std + mean
        return views.clamp(0, 1)

    def _normalise(self, images: Tensor) -> Tensor:
        if self.mean is None or self.std is None:
            return images
        mean, std = images.new_tensor(self.mean)[:, None, None], images.new_tensor(self.std)[:, None, None]
        return (images - mean) / std


def _scaled(images: Tensor) -> Tensor:
    """Uint8 [B, 3, H, W] → float32 in [0, 1]; any other tensor would give wrong views without a word."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
        given = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise UserError(
            f"views are made of uint8 [B, 3, H, W], and not of {given}: unlabeled.data.decode.rgb makes that of grey, "
            "RGBA and 16-bit images"
        )
    return images.float().div_(255)

"""Turns a batch of decoded images into the views that an objective compares."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from unlabeled.core.few_launches import few_launches
from unlabeled.core.ranges import ChannelDeviations, ChannelMeans, Channels, FilePath, Pixels, SomeShare
from unlabeled.core.seeding import to_device
from unlabeled.data.decoding import channels_of, in_colour
from unlabeled.data.padding import image_sizes
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.objective import Check
from unlabeled.views.at_once import AtOnce, Compile
from unlabeled.views.background import RemoveBackground
from unlabeled.views.draw_ahead import DrawnGroup
from unlabeled.views.in_blocks import SMALL, make_in_blocks
from unlabeled.views.kernels.crop import Interpolation, crop_resize
from unlabeled.views.key import ViewKey
from unlabeled.views.masks import open_masks
from unlabeled.views.operations import HasPlanWarnings, Operation
from unlabeled.views.per_image import PerImageTransform

# Pixels of one view that the operations process together. On a CPU few enough to stay in its caches,
# so that their memory is reused: two views of 32 photographs took 146 ms on one core at once, and 103 ms in blocks of
# 4; of 256 images of 32 pixels 20 ms, and 15 ms in blocks of 128. On a GPU it bounds the memory.
CPU_BLOCK, GPU_BLOCK = 250_000, 8_000_000


@dataclass(frozen=True)
class ViewGroup:
    """Describes views with the same distribution: their number, and the operations (or kornia, torchvision) in order.

    Raises:
        UserError: one of the operations is something else.
    """

    count: Annotated[int, Interval(ge=1, le=1024)]
    operations: Sequence[Operation]
    after_crop: int = field(init=False)  # index of the first operation after a crop, where images get one size

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", [_as_operation(step) for step in self.operations])
        crops = [number for number, step in enumerate(self.operations) if getattr(step, "crops", False)]
        object.__setattr__(self, "after_crop", crops[0] + 1 if crops else len(self.operations))


class Views(nn.Module):
    """Makes all views of a batch on the device where the images are.

    Args:
        size: height and width of the image that evaluation sees, pixels.
        groups: the groups of views, in order; a later group may make smaller crops.
        mean, std: per channel, subtracted and divided at the end; None leaves values in [0, 1].
        evaluation_crop: central share of the image's side that evaluation keeps before resizing to ``size``.
        evaluation_interpolation: ``bilinear`` or ``bicubic``.
        masks: file of foreground masks that every ``RemoveBackground`` of the groups reads; None for none.
        compile: whether ``torch.compile`` makes few kernels of all operations; the first step then takes longer.
            ``auto``: on a GPU, not on a CPU, where each step would too: 213 ms instead of 104 for two views of 32
            photographs on one core.
        channels: of the images. With other than 3 there are no colours: crops, flips, blur and other operations on
            single channels work, operations on colours are refused.

    Raises:
        UserError: mean or std has another length; operations on colours without colours; the groups read another file
            of masks, or none, or after the crop; they cannot be compiled.
    """

    def __init__(
        self,
        size: Pixels,
        groups: Sequence[ViewGroup],
        mean: ChannelMeans | None,
        std: ChannelDeviations | None,
        evaluation_crop: SomeShare,
        evaluation_interpolation: Interpolation,
        masks: FilePath | None = None,
        compile: Compile = False,
        channels: Channels = 3,
    ) -> None:
        super().__init__()
        self.size, self.groups = size, groups
        self.count = sum(group.count for group in groups)  # of views of an image
        self.mean, self.std = mean, std
        self.evaluation_crop, self.evaluation_interpolation = evaluation_crop, evaluation_interpolation
        self.masks, self.compiles, self.channels = masks, compile, channels
        self._check_channels()
        self._check_masks()
        if compile is True:
            self._check_compiles()
        self.block: int | None = None  # images that the operations process together; None: chosen by speed
        normal = None if mean is None or std is None else torch.tensor([mean, std], dtype=torch.float64)
        self._normal = None if normal is None else normal[:, :, None, None]  # [2, C, 1, 1], mean and deviation
        self._normal_on: dict[torch.device, Tensor] = {}
        self._at_once = AtOnce()

    def uncompiled(self) -> "Views":
        """Returns the same views, for a few batches of another size than the training's: compiling would not pay."""
        made = copy.copy(self)
        made.compiles = False
        return made

    def _check_channels(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise UserError(
                    f"views.{name}={list(values)}: images have {self.channels} channels (data.channels): give as many"
                    " numbers, or null"
                )
        steps = [step for group in self.groups for step in group.operations if getattr(step, "coloured", False)]
        if steps and self.channels != 3:
            raise UserError(
                f"views.groups: {type(steps[0]).__name__} is for RGB, and images have {self.channels} channels"
                " (data.channels): leave it out, crops, flips and blur are for any number"
            )

    def require_channels(self, source: Source) -> None:
        """Raises UserError if the images of ``source`` have another number of channels than these views."""
        if (given := channels_of(source)) != self.channels:
            raise UserError(
                f"data.channels={given}: the views are of images with {self.channels}: give views.channels={given}, or"
                f" data.channels={self.channels}"
            )

    def _check_masks(self) -> None:
        steps = [step for group in self.groups for step in group.operations if isinstance(step, RemoveBackground)]
        if {self.masks} - {None} != {step.masks for step in steps} - {None}:
            raise UserError(
                f"views.masks={self.masks}: RemoveBackground in views.groups must read it (masks: ${{views.masks}})"
            )
        if any(
            isinstance(step, RemoveBackground) for group in self.groups for step in group.operations[group.after_crop :]
        ):
            raise UserError("views.groups: RemoveBackground must come before the crop, its masks are of whole images")

    def _check_compiles(self) -> None:
        for group in self.groups:
            if any(isinstance(step, PerImageTransform) for step in group.operations[group.after_crop :]):
                raise UserError("views.compile=true: Foreign goes image by image in Python; give views.compile=false")

    def arguments(self) -> dict[str, Any]:
        """Returns what these views were made with."""
        names = ("size", "groups", "mean", "std", "evaluation_crop", "evaluation_interpolation", "masks", "channels")
        return {name: getattr(self, name) for name in names} | {"compile": self.compiles}

    def changed(self, **given: Any) -> "Views":
        """Returns views with some arguments replaced; all others are as here."""
        made = Views(**self.arguments() | given)
        made.block = self.block
        return made

    def without_masks(self) -> "Views":
        """Returns the same views with every background left as it is; the file of masks is not opened."""
        groups = [
            replace(group, operations=[step for step in group.operations if not isinstance(step, RemoveBackground)])
            for group in self.groups
        ]
        return self if self.masks is None else self.changed(groups=groups, masks=None)

    def require_masks(self, source: Source) -> None:
        """Raises UserError if masks are needed and are missing or are not those of ``source``."""
        if self.masks is not None:
            open_masks(self.masks).require(source, self.masks)

    def sizes(self, image_size: int) -> list[int]:
        """Returns height and width of each view of a square image, in pixels, by trying a black image."""
        tried = copy.copy(self)
        tried.compiles = False  # compiling for a batch of one is useless
        black = torch.zeros(1, self.channels, image_size, image_size, dtype=torch.uint8)
        return [view.shape[-1] for view in tried(black, torch.zeros(1, dtype=torch.long), ViewKey(0, 0, 0, 1))]

    def plan_warnings(self, image_size: int) -> list[Check]:
        """Returns the checks of each operation for images of that height and width."""
        looks = []
        for group in self.groups:
            pixels = image_size
            for step in group.operations:
                looks += step.plan_warnings(pixels) if isinstance(step, HasPlanWarnings) else []
                pixels = getattr(step, "size", pixels) if getattr(step, "crops", False) else pixels
        return list(dict.fromkeys(looks))

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        key: ViewKey,
        first: int | None = None,
        sizes: Tensor | None = None,
        skipped: int = 0,
    ) -> tuple[Tensor, ...]:
        """Draws and makes the views.

        Args:
            images: uint8 [B, C, H, W], the rows ``key.first`` … ``key.first + B`` of the global batch.
            ids: int64 [B], of the images in their source.
            key: of the draws.
            first: how many of the views to make; None: all.
            sizes: int64 [B, 2], height and width of each image in the upper left corner of its canvas; None: H and W.
            skipped: how many of these, from the first one on, are not made.

        Returns:
            One float32 [B, C, h, w] per view.

        Raises:
            UserError: images of another type or shape, or of different sizes if a group does not begin with a crop.
        """
        groups = [group for group in self.groups for _ in range(group.count)][skipped:first]
        if sizes is not None:
            _require_crop_first(groups)
        compiles = self.compiles is True or (self.compiles == "auto" and images.device.type == "cuda")
        if compiles or few_launches(images.device):
            if (
                images.dtype != torch.uint8
                or images.dim() != 4
                or images.shape[1] != self.channels
                or 0 in images.shape
            ):
                raise self._refusal(images)
            ids = ids if self.masks is None else ids.cpu()  # beside the masks: waits for a GPU once, not per group
            batch = {"ids": ids} if sizes is None else {"ids": ids, "sizes": sizes}
            how = self._normal_of(images.device), self.compiles if compiles else False, self.block
            return self._at_once.make(images, self._numbered(first, skipped), key, batch, *how)
        batch = {"ids": ids} if sizes is None else {"ids": ids, "sizes": sizes}
        small = self.size**2 <= SMALL
        return make_in_blocks(self._blocks(images), self._numbered(first, skipped), key, batch, self._finish, small)

    def _finish(self, images: Tensor) -> Tensor:
        """Normalises, in place."""
        if self._normal is None:
            return images
        mean, std = self._normal.to(images.device, images.dtype, non_blocking=True)
        return images.sub_(mean).div_(std)

    def _normal_of(self, device: torch.device) -> Tensor | None:
        """Returns mean and deviation as float32 on a device, where they stay."""
        if self._normal is None:
            return None
        if device not in self._normal_on:
            self._normal_on[device] = to_device(self._normal.float(), device)
        return self._normal_on[device]

    def _numbered(self, first: int | None, skipped: int = 0) -> list[DrawnGroup]:
        """Returns the groups with the numbers of their views, of the ``first`` without those ``skipped``."""
        numbers, wanted = iter(range(self.count)), range(self.count)[skipped:first]
        of_groups = [[number for number in islice(numbers, group.count) if number in wanted] for group in self.groups]
        pairs = zip(self.groups, of_groups, strict=True)
        return [DrawnGroup(group.operations, tuple(views)) for group, views in pairs if views]

    def _blocks(self, images: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yields blocks of rows as float32 in [0, 1]; their size is a power of two, so that they divide a batch evenly.

        A block has at most so many rows that its floats are no larger than four times one view of the whole batch, and
        on a CPU fewer, so that they stay in its caches.

        Raises:
            UserError: images of another type or shape, which would silently give wrong views.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != self.channels or 0 in images.shape:
            raise self._refusal(images)
        view, pixels = self.size**2, max(self.size**2, images.shape[2] * images.shape[3] / 4)
        limit = min(CPU_BLOCK if images.device.type == "cpu" else GPU_BLOCK, len(images) * view)
        step = self.block or 1 << max(0, int(limit / pixels).bit_length() - 1)
        for start in range(0, len(images), step):
            rows = slice(start, min(start + step, len(images)))
            # Stored column after column: a crop on a CPU starts with columns (resample.resize_sparse).
            floats = images[rows].mT.to(torch.float32, memory_format=torch.contiguous_format)
            yield rows, floats.div_(255).mT

    def _refusal(self, images: Tensor) -> UserError:
        given = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        return UserError(
            f"views are made of uint8 [B, {self.channels}, H, W], and not of {given}: unlabeled.data.decode.to_rgb "
            "makes that of grey, RGBA and 16-bit images"
        )

    @torch.no_grad()
    def evaluation_view(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Makes the view for evaluation, without randomness: uint8 [B, C, H, W] → float32 [B, C, size, size].

        ``sizes`` as in forward: each image is cropped at its own centre.
        """
        frames = image_sizes(images, sizes)
        sides = (frames.amin(1, keepdim=True).double() * self.evaluation_crop).round().long().clamp(min=1)
        margins = ((frames - sides) / 2).round().long()  # half a pixel to even, as torchvision's CenterCrop
        boxes, flip = torch.cat([margins, sides, sides], 1), torch.zeros_like(sides[:, 0], dtype=torch.bool)
        made = [
            crop_resize(some, boxes[rows], flip[rows], self.size, self.evaluation_interpolation)
            for rows, some in self._blocks(images)
        ]
        return self._finish(torch.cat(made))

    def evaluation(self) -> dict[str, object]:
        """Returns the settings of :meth:`evaluation_view` for reports, as plain values."""
        mean, std = (None if values is None else list(values) for values in (self.mean, self.std))
        return {
            "size": self.size,
            "crop": self.evaluation_crop,
            "interpolation": self.evaluation_interpolation,
            "mean": mean,
            "std": std,
        }

    def to_pixels(self, views: Tensor) -> Tensor:
        """Maps views [B, C, h, w] back to values in [0, 1]; values outside are clamped."""
        if self._normal is not None:
            mean, std = self._normal.to(views.device, views.dtype)
            views = views * std + mean
        return views.clamp(0, 1)

    def shown(self, views: Tensor) -> Tensor:
        """Maps views [B, C, h, w] to pixels [B, 3, h, w] in [0, 1], for display."""
        return in_colour(self.to_pixels(views))

    def to_views(self, pixels: Tensor) -> Tensor:
        """Normalises values in [0, 1] for a network, the inverse of :meth:`to_pixels`; ``pixels`` stay as they are."""
        return self._finish(pixels.clone())


def _as_operation(step: Operation | Callable[[Tensor], Tensor]) -> Operation:
    """Wraps a transform of an image as an operation; an operation is returned unchanged."""
    if isinstance(step, Operation):
        return step
    if not callable(step):
        raise UserError(f"views.groups: {step!r} is no operation and no transform; give a _target_ that is one")
    return PerImageTransform(step)


def _require_crop_first(groups: Sequence[ViewGroup]) -> None:
    """Refuses groups whose first operation does not know the image's size: it would process the padding too."""
    for group in groups:
        if not any(getattr(step, "crops", False) for step in group.operations):
            raise UserError("views.groups: images differ in size and a group has no crop; add one, or data.square=true")
        for step in group.operations[: group.after_crop]:
            if not getattr(step, "framed", False):
                raise UserError(
                    f"views.groups: {type(step).__name__} needs images of one size and these differ: crop before it, "
                    "or give data.square=true"
                )

"""From a batch of decoded images to the views that an objective compares."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from unlabeled.data.decoding import channels_of, in_colour
from unlabeled.data.padding import image_sizes
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.objective import Check
from unlabeled.views.background import RemoveBackground
from unlabeled.views.kernels.crop import Interpolation, crop_resize
from unlabeled.views.key import ViewKey
from unlabeled.views.masks import open_masks
from unlabeled.views.operations import HasPlanWarnings, Operation, Parameters
from unlabeled.views.per_image import PerImageTransform

Colour = Callable[[Tensor, Sequence[Parameters]], Tensor]


# Pixels of one view of the images that go through the operations together. On a CPU so few that they stay in its caches
# and their memory is used again: two views of 32 photographs took 146 ms on one core at once, and 103 ms in blocks of
# 4; of 256 images of 32 pixels 20 ms, and 15 ms in blocks of 128. On a GPU it bounds the memory.
CPU_BLOCK, GPU_BLOCK = 250_000, 8_000_000


@dataclass(frozen=True)
class ViewGroup:
    """Views that are drawn alike: how many, and the operations in order; transforms of kornia or torchvision as well.

    Raises:
        UserError: among the operations is something else.
    """

    count: int
    operations: Sequence[Operation]

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", [_as_operation(step) for step in self.operations])

    @property
    def after_crop(self) -> int:
        """Number of the first operation behind a crop: from there on all images are of one size."""
        crops = [number for number, step in enumerate(self.operations) if getattr(step, "crops", False)]
        return crops[0] + 1 if crops else len(self.operations)


class Views(nn.Module):
    """All views of a batch, made on the device where the images are.

    Args:
        size: height and width of the image that evaluation sees, pixels.
        groups: what is drawn, in order; a later group may make smaller crops.
        mean, std: per channel, subtracted and divided at the very end; None leaves values in [0, 1].
        evaluation_crop: central share of the image's side that evaluation keeps before resizing to ``size``.
        evaluation_interpolation: ``bilinear`` or ``bicubic``.
        masks: file of foreground masks that every ``RemoveBackground`` of the groups reads; None for none.
        compile: what follows the crop by ``torch.compile``, for a GPU; the first step then takes longer. On a CPU each
            step does: 213 ms in place of 104 for two views of 32 photographs on one core.
        channels: of the images. Others than 3 have no colours: crops, flips, blur and what else treats each channel
            alike are for all, operations on colours are refused.

    Raises:
        UserError: mean or std of another length, or operations on colours where there are none; the groups read another
            file of masks, or none, or after the crop; they cannot be compiled.
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
        compile: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.size, self.groups = size, groups
        self.mean, self.std = mean, std
        self.evaluation_crop, self.evaluation_interpolation = evaluation_crop, evaluation_interpolation
        self.masks, self.compiles, self.channels = masks, compile, channels
        self._check_channels()
        self._check_masks()
        if compile:
            self._check_compiles()
        self.block: int | None = None  # images that go through the operations together; None: as many as pays
        self._compiled: dict[int, Colour] = {}

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
        """Raise UserError if the images of ``source`` have other channels than these views."""
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

    def require_masks(self, source: Source) -> None:
        """Raise UserError if there are to be masks and they are missing or not those of ``source``."""
        if self.masks is not None:
            open_masks(self.masks).require(source, self.masks)

    def sizes(self, image_size: int) -> list[int]:
        """Height and width of each view of a square image, pixels; tried on a black one."""
        tried = copy.copy(self)
        tried.compiles = False  # it would be compiled for a batch of one
        black = torch.zeros(1, self.channels, image_size, image_size, dtype=torch.uint8)
        return [view.shape[-1] for view in tried(black, torch.zeros(1, dtype=torch.long), ViewKey(0, 0, 0, 1))]

    def plan_warnings(self, image_size: int) -> list[Check]:
        """What may not fit images of that height and width: each operation says so of what it is given."""
        looks = []
        for group in self.groups:
            pixels = image_size
            for step in group.operations:
                looks += step.plan_warnings(pixels) if isinstance(step, HasPlanWarnings) else []
                pixels = getattr(step, "size", pixels) if getattr(step, "crops", False) else pixels
        return list(dict.fromkeys(looks))

    @torch.no_grad()
    def forward(
        self, images: Tensor, ids: Tensor, key: ViewKey, first: int | None = None, sizes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Draw and make the views.

        Args:
            images: uint8 [B, C, H, W], the rows ``key.first`` … ``key.first + B`` of the global batch.
            ids: int64 [B], of the images in their source.
            key: names the draws.
            first: how many of the first views are made; all where None.
            sizes: int64 [B, 2], height and width of each image in the upper left corner of its canvas; None: H and W.

        Returns:
            One float32 [B, C, h, w] per view.

        Raises:
            UserError: images of another type or shape, or of different sizes where a group does not begin by cropping.
        """
        groups = [group for group in self.groups for _ in range(group.count)][:first]
        _require_uint8(images, self.channels)
        if sizes is not None:
            _require_crop_first(groups)
        mine = slice(key.first, key.first + len(images))
        drawn = [_draw(group, key, number, mine) for number, group in enumerate(groups)]
        batch = {"ids": ids if self.masks is None else ids.cpu()}  # as the masks: wait for a GPU once, not per view
        batch |= {} if sizes is None else {"sizes": sizes}
        blocks = []
        for rows in self._blocks(images):
            scaled, own = _scaled(images[rows]), _rows(batch, rows)
            some = [[_rows(parameters, rows) for parameters in each] for each in drawn]
            blocks.append([self._view(scaled, group, each, own) for group, each in zip(groups, some, strict=True)])
        return tuple(map(_joined, zip(*blocks, strict=True)))

    def _view(self, images: Tensor, group: ViewGroup, drawn: Sequence[Parameters], batch: Parameters) -> Tensor:
        """One view of some images, float [n, 3, H, W], which stay as they are: other views are made of them."""
        cut = group.after_crop
        if not any(getattr(step, "crops", False) for step in group.operations[:1]):
            images = images.clone()  # other operations may write to it
        images = apply_operations(group.operations[:cut], images, [parameters | batch for parameters in drawn[:cut]])
        if not self.compiles:
            return self._finish(group.operations[cut:], images, drawn[cut:])
        there = [
            {name: values.to(images.device, non_blocking=True) for name, values in each.items()} for each in drawn[cut:]
        ]
        return self._compiled_finish(group)(images, there)

    def _finish(self, operations: Sequence[Operation], images: Tensor, drawn: Sequence[Parameters]) -> Tensor:
        """What comes after the crop, and normalising."""
        return self._normalise(apply_operations(operations, images, drawn))

    def _compiled_finish(self, group: ViewGroup) -> Colour:
        """Made at first use, one for each group: the shapes stay from step to step, so it is compiled once."""
        if id(group) not in self._compiled:
            finish = partial(self._finish, group.operations[group.after_crop :])
            self._compiled[id(group)] = torch.compile(finish, fullgraph=True, dynamic=False)
        return self._compiled[id(group)]

    def _blocks(self, images: Tensor) -> list[slice]:
        """Rows that go together: a power of two of them, so that they share out a batch evenly.

        So many that the images as floats are no larger than four times one view of the whole batch.
        """
        view, pixels = self.size**2, max(self.size**2, images.shape[2] * images.shape[3] / 4)
        limit = min(CPU_BLOCK if images.device.type == "cpu" else GPU_BLOCK, len(images) * view)
        step = self.block or 1 << max(0, int(limit / pixels).bit_length() - 1)
        return [slice(start, start + step) for start in range(0, len(images), step)]

    @torch.no_grad()
    def evaluation_view(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """What evaluation sees, nothing random: uint8 [B, C, H, W] → float32 [B, C, size, size]; errors as forward.

        ``sizes`` as in forward: each image's own centre is seen.
        """
        _require_uint8(images, self.channels)
        frames = image_sizes(images, sizes)
        sides = (frames.amin(1, keepdim=True).double() * self.evaluation_crop).round().long().clamp(min=1)
        margins = ((frames - sides) / 2).round().long()  # half a pixel to even, as torchvision's CenterCrop
        boxes, flip = torch.cat([margins, sides, sides], 1), torch.zeros_like(sides[:, 0], dtype=torch.bool)
        made = [
            crop_resize(_scaled(images[rows]), boxes[rows], flip[rows], self.size, self.evaluation_interpolation)
            for rows in self._blocks(images)
        ]
        return self._normalise(_joined(made))

    def evaluation(self) -> dict[str, object]:
        """What decides :meth:`evaluation_view`, for reports; plain values."""
        mean, std = (None if values is None else list(values) for values in (self.mean, self.std))
        return {
            "size": self.size,
            "crop": self.evaluation_crop,
            "interpolation": self.evaluation_interpolation,
            "mean": mean,
            "std": std,
        }

    def to_pixels(self, views: Tensor) -> Tensor:
        """Views [B, C, h, w] back to values in [0, 1]; what lies outside is clamped."""
        if self.mean is not None and self.std is not None:
            views = views * _per_channel(self.std, views) + _per_channel(self.mean, views)
        return views.clamp(0, 1)

    def shown(self, views: Tensor) -> Tensor:
        """Views [B, C, h, w] as pixels [B, 3, h, w] in [0, 1], to look at."""
        return in_colour(self.to_pixels(views))

    def to_views(self, pixels: Tensor) -> Tensor:
        """The inverse of :meth:`to_pixels`: values in [0, 1] as a network takes them; ``pixels`` stay as they are."""
        return self._normalise(pixels.clone())

    def _normalise(self, images: Tensor) -> Tensor:
        """In place."""
        if self.mean is None or self.std is None:
            return images
        return images.sub_(_per_channel(self.mean, images)).div_(_per_channel(self.std, images))


def _as_operation(step: Operation | Callable[[Tensor], Tensor]) -> Operation:
    """What draws apart from applying, as it is; any other transform of an image as an operation."""
    if isinstance(step, Operation):
        return step
    if not callable(step):
        raise UserError(f"views.groups: {step!r} is no operation and no transform; give a _target_ that is one")
    return PerImageTransform(step)


def apply_operations(operations: Sequence[Operation], images: Tensor, drawn: Sequence[Parameters]) -> Tensor:
    """One operation after the other, each with what was drawn for it."""
    for operation, parameters in zip(operations, drawn, strict=True):
        images = operation.apply(images, parameters)
    return images


def _draw(group: ViewGroup, key: ViewKey, number: int, mine: slice) -> list[Parameters]:
    """Drawn for the whole global batch, of which this process keeps its rows."""
    generator = key.generator(number)
    return [_rows(operation.sample(key.total, generator), mine) for operation in group.operations]


def _rows(parameters: Parameters, rows: slice) -> Parameters:
    return {name: values[rows] for name, values in parameters.items()}


def _scaled(images: Tensor) -> Tensor:
    """Uint8 → float32 in [0, 1]; in memory column after column: a crop on a CPU begins with these (resample.add_up)."""
    return images.mT.contiguous().float().div_(255).mT


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    return torch.tensor(values, dtype=images.dtype).to(images.device, non_blocking=True)[:, None, None]


def _require_crop_first(groups: Sequence[ViewGroup]) -> None:
    """What does not know where an image ends would count its canvas in."""
    for group in groups:
        if not any(getattr(step, "crops", False) for step in group.operations):
            raise UserError("views.groups: images differ in size and a group has no crop; add one, or data.square=true")
        for step in group.operations[: group.after_crop]:
            if not getattr(step, "framed", False):
                raise UserError(
                    f"views.groups: {type(step).__name__} needs images of one size and these differ: crop before it, "
                    "or give data.square=true"
                )


def _require_uint8(images: Tensor, channels: int) -> None:
    """Any other tensor would give wrong views without a word."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != channels or 0 in images.shape:
        given = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise UserError(
            f"views are made of uint8 [B, {channels}, H, W], and not of {given}: unlabeled.data.decode.to_rgb makes "
            "that "
            "of grey, RGBA and 16-bit images"
        )

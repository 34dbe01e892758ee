"""What a detector sees in training: a flip, and large-scale jitter or a random size; the objects follow the image.

Large-scale jitter: Ghiasi et al. 2021 (Copy-Paste, arXiv 2012.07177), as ViTDet's recipes in detectron2 have it. A
random size of the shorter side: detectron2's ``ResizeShortestEdge``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Sample = tuple[Tensor, dict[str, Tensor]]  # image float [3, h, w]; boxes [N, 4], labels [N], perhaps masks [N, h, w]


@dataclass(frozen=True)
class Jitter:
    """How the images of a step are resized.

    Args:
        size: of the square crop of large-scale jitter, pixels; ``scale`` is then used, else the others.
        scale: least and greatest factor of ``size`` into which the whole image is fitted before the crop; None: none.
        shorter: sizes of the shorter side, one of which is drawn for each image.
        longest: most pixels of the longer side, when the shorter side is resized.
        flip: whether half of the images are mirrored.
        fill: of what is beyond the image in a crop, one for each channel: the mean, which is 0 after normalising.
    """

    size: int
    scale: tuple[float, float] | None
    shorter: Sequence[int]
    longest: int
    flip: bool
    fill: tuple[float, ...]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Returns the image with the objects of which something is left; all draws are from the generator."""
        if self.flip and float(torch.rand((), generator=generator)) < 0.5:
            sample = flipped(sample)
        if self.scale is None:
            size = self.shorter[int(torch.randint(len(self.shorter), (), generator=generator))]
            return resized(sample, *fitted(sample[0], size, self.longest))
        low, high = self.scale
        side = self.size * (low + (high - low) * float(torch.rand((), generator=generator)))
        height, width = sample[0].shape[1:]
        factor = side / max(height, width)
        sample = resized(sample, max(1, round(height * factor)), max(1, round(width * factor)))
        return self._cropped(sample, torch.rand(2, generator=generator).tolist())

    def _cropped(self, sample: Sample, place: Sequence[float]) -> Sample:
        """Returns the ``size`` × ``size`` crop at a share of the room that there is; filled right and below."""
        image, target = sample
        top, left = (
            round(max(0, side - self.size) * share) for side, share in zip(image.shape[1:], place, strict=True)
        )
        image = image[:, top : top + self.size, left : left + self.size]
        whole = image.new_tensor(self.fill)[:, None, None].repeat(1, self.size, self.size)
        whole[:, : image.shape[1], : image.shape[2]] = image
        moved = target | {"boxes": target["boxes"] - target["boxes"].new_tensor([left, top, left, top])}
        if "masks" in target:
            masks = target["masks"][:, top : top + self.size, left : left + self.size]
            moved["masks"] = F.pad(masks, (0, self.size - masks.shape[2], 0, self.size - masks.shape[1]))
        return whole, what_is_left(moved, image.shape[1], image.shape[2])


def flipped(sample: Sample) -> Sample:
    """Mirrors an image and its objects."""
    image, target = sample
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    mirrored = target | {"boxes": torch.stack([width - right, top, width - left, bottom], 1)}
    if "masks" in target:
        mirrored["masks"] = target["masks"].flip(2)
    return image.flip(2), mirrored


def fitted(image: Tensor, shorter: int, longest: int) -> tuple[int, int]:
    """Returns height and width: the shorter side is ``shorter``, but the longer one at most ``longest``."""
    height, width = image.shape[1:]
    factor = min(shorter / min(height, width), longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized(sample: Sample, height: int, width: int) -> Sample:
    """Resizes the image bilinearly with antialiasing, the masks to the nearest pixel."""
    image, target = sample
    before = image.shape[1:]
    if before == (height, width):
        return sample
    factors = target["boxes"].new_tensor([width / before[1], height / before[0]] * 2)
    changed = target | {"boxes": target["boxes"] * factors}
    if "masks" in target:
        masks = target["masks"]
        none = masks.new_zeros(0, height, width)
        changed["masks"] = F.interpolate(masks[None], (height, width), mode="nearest-exact")[0] if len(masks) else none
    image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    return image, what_is_left(changed, height, width)


def what_is_left(target: dict[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
    """Returns the objects of which something is within the image; with masks, their boxes are those of the masks."""
    boxes = target["boxes"].clone()
    boxes[:, 0::2].clamp_(0, width)
    boxes[:, 1::2].clamp_(0, height)
    if "masks" in target:
        boxes = boxes_of(target["masks"])
    left = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return {key: value[left] for key, value in (target | {"boxes": boxes}).items()}


def boxes_of(masks: Tensor) -> Tensor:
    """Returns the smallest boxes float32 [N, 4] around masks [N, h, w]; all 0 of an empty one."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for low, high, seen in ((0, 2, masks.bool().any(1)), (1, 3, masks.bool().any(2))):
        places, some = torch.arange(seen.shape[1], device=masks.device), seen.any(1)
        boxes[:, low] = torch.where(seen, places, seen.shape[1]).amin(1) * some
        boxes[:, high] = (torch.where(seen, places, -1).amax(1) + 1) * some
    return boxes

"""Augmentation of a recipe's training images: crop and flip by our views, and timm's supervised policies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from unlabeled.core.ranges import PartialShare, Share, ShareSpan, Span
from unlabeled.core.seeding import derive_seed
from unlabeled.data.padding import batch_to_device
from unlabeled.errors import UserError
from unlabeled.objective import Batch
from unlabeled.views.kernels.crop import Interpolation
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import Operation, Parameters, RandomResizedCrop
from unlabeled.views.per_image import PerImageTransform, preserve_random_state, seed_all
from unlabeled.views.pipeline import ViewGroup, Views

ERASING, MIXING = 1, 2  # keys of a step's random draws


@dataclass(frozen=True)
class Augmentation:
    """Settings of crop, flip and policy; size, mean and deviation are those of the run's views.

    Args:
        crop: ``ten_tries`` draws boxes as torchvision, ``clamped`` once, cut to the image, as BYOL and MAE's probe do.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: ``bilinear`` or ``bicubic``.
        flip: probability of a horizontal flip.
        policy: of timm, applied image by image: ``rand-m9-mstd0.5-inc1`` (RandAugment), ``original`` (AutoAugment);
            None: none.
        erasing: share of the images of which a rectangle becomes noise, after normalising (timm's RandomErasing).
    """

    crop: Literal["ten_tries", "clamped"]
    scale: ShareSpan
    ratio: Span
    interpolation: Interpolation
    flip: Share
    policy: str | None
    erasing: Share

    def check(self, key: str) -> None:
        """Raises UserError for an unknown value; ``key`` begins the names in its message."""
        if self.crop not in ("ten_tries", "clamped"):
            raise UserError(f"{key}.crop={self.crop} is neither ten_tries nor clamped")
        if not 0 <= self.erasing <= 1:
            raise UserError(f"{key}.erasing={self.erasing}: must be from 0 to 1")

    def describe(self) -> list[str]:
        """Lists, for protocols, what differs from a crop of 8 % to all of the area and a flip of half the images."""
        low, high = self.scale
        found = {
            f"scale{low:g}-{high:g}": (low, high) != (0.08, 1.0),
            f"flip{self.flip:g}": self.flip != 0.5,
            str(self.policy): self.policy is not None,
            f"erasing{self.erasing:g}": self.erasing > 0,
        }
        return [word for word, unusual in found.items() if unusual]

    def views(self, run: Views) -> Views:
        """Returns views with one view per image, with the size and normalisation of the run's."""
        crop = ClampedCrop if self.crop == "clamped" else RandomResizedCrop
        steps: list[Operation] = [crop(run.size, self.scale, self.ratio, self.interpolation, self.flip)]
        if self.policy is not None and run.channels != 3:
            raise UserError(
                f"augmentation.policy={self.policy}: is for images of three colours, and data.channels={run.channels}:"
                " give augmentation.policy=null"
            )
        if self.policy is not None:
            steps.append(PerImageTransform(augmentation_policy(self.policy, run.size, run.mean, self.interpolation)))
        group = ViewGroup(1, steps)
        shown = run.mean, run.std, run.evaluation_crop, run.evaluation_interpolation
        return Views(run.size, [group], *shown, channels=run.channels)

    def apply(self, views: Views, batch: Batch, key: ViewKey, device: torch.device) -> Tensor:
        """Returns views [B, 3, size, size] of rows of a batch, a function of ``key`` and of the images."""
        images, sizes = batch_to_device(batch, device)
        made: Tensor = views(images, batch.ids, key, sizes=sizes)[0]
        return (
            made
            if not self.erasing
            else random_erase(made, self.erasing, derive_seed(key.seed, key.step, key.first, ERASING))
        )


class ClampedCrop(RandomResizedCrop):
    """Draws a box of random area and shape once, each side cut to the image's; no box is rejected.

    As BYOL (deepmind-research, byol/utils/dataset.py) and MAE's linear probe (facebookresearch/mae, util/crop.py).
    """

    def boxes(self, parameters: Parameters, sizes: Tensor) -> Tensor:
        area, ratio, where = (parameters[name].to(sizes.device) for name in ("area", "ratio", "where"))
        sizes = sizes.double()
        area, ratio = area[:, 0] * sizes.prod(1), ratio[:, 0]
        box = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).round().clamp(min=1).minimum(sizes)
        return torch.cat([(where * (sizes - box + 1)).floor(), box], 1).long()


def augmentation_policy(
    name: str, size: int, mean: Sequence[float] | None, interpolation: Interpolation
) -> Callable[[Tensor], Tensor]:
    """Returns timm's policy, with timm's settings, as a transform of one image [1, 3, h, w] in [0, 1].

    Empty areas after a rotation or shift are filled with ``mean``, or with grey if that is None.
    Raises UserError for a policy that timm does not know.
    """
    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
    from timm.data.transforms import str_to_pil_interp

    settings: dict[str, Any] = {"translate_const": int(size * 0.45), "interpolation": str_to_pil_interp(interpolation)}
    if mean is not None:
        settings["img_mean"] = tuple(min(255, round(255 * value)) for value in mean)
    build = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    try:
        transform = build(name, settings)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(f"augmentation.policy={name}: timm knows no such policy ({error})") from error
    for step in getattr(transform, "ops", None) or [step for some in transform.policy for step in some]:
        if step.name.startswith("Posterize"):
            step.aug_fn = _posterize
    return PILTransform(transform)


def _posterize(image: Any, bits: int, **_: Any) -> Any:
    """Posterizes as older Pillow did when the policies were published: 0 bits give black; Pillow 13 raises an error."""
    from PIL import Image, ImageOps

    if bits == 0:
        return Image.new("RGB", image.size)
    return ImageOps.posterize(image, min(bits, 8))


class PILTransform:
    """Applies a transform of PIL images to a tensor [1, 3, h, w] in [0, 1], which is rounded to 8 bits for it."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional as F

        picture = F.to_pil_image((image[0] * 255).round().to("cpu", torch.uint8))
        made: Tensor = F.pil_to_tensor(self.transform(picture))[None]
        return made.to(image.device).to(image.dtype) / 255


def random_erase(images: Tensor, share: float, seed: int) -> Tensor:
    """Erases a rectangle with normal noise in a ``share`` of normalised images [B, 3, h, w], in place (timm)."""
    from timm.data.random_erasing import RandomErasing

    with preserve_random_state(images.device):
        seed_all(seed, images.device)
        erased: Tensor = RandomErasing(share, mode="pixel", max_count=1, device=images.device)(images)
    return erased


@dataclass(frozen=True)
class Mixing:
    """Mixes two images of a pass into one, and their labels likewise (timm's Mixup, one draw for a pass).

    Args:
        mixup: α of the blend of two images, 0 for none (Zhang et al. 2017, arXiv:1710.09412).
        cutmix: α of the share of a rectangle put in from another image, 0 for none (Yun et al. 2019,
            arXiv:1905.04899). Where both are given each pass has one or the other with equal probability.
        label_smoothing: share of a label that is spread over all classes.
    """

    mixup: Annotated[float, Interval(ge=0, le=100)]
    cutmix: Annotated[float, Interval(ge=0, le=100)]
    label_smoothing: PartialShare

    def describe(self) -> list[str]:
        """Lists the settings, for protocols, as :meth:`Augmentation.describe` does."""
        found = {"mixup": self.mixup, "cutmix": self.cutmix, "smoothing": self.label_smoothing}
        return [f"{name}{value:g}" for name, value in found.items() if value]

    def apply(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Mixes images [B, 3, h, w], which may be overwritten, and labels [B]: images and targets [B, num_classes]."""
        from timm.data.mixup import Mixup, mixup_target

        if not (self.mixup or self.cutmix) or len(images) % 2:  # timm pairs the first with the last
            return images, mixup_target(labels, num_classes, 1.0, self.label_smoothing)
        mixer = Mixup(self.mixup, self.cutmix, label_smoothing=self.label_smoothing, num_classes=num_classes)
        with preserve_random_state(images.device):
            seed_all(seed, images.device)
            mixed: tuple[Tensor, Tensor] = mixer(images, labels)
        return mixed

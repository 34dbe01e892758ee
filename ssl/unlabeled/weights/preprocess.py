"""Preprocessing of a backbone's images, in a form that other libraries understand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unlabeled.errors import UserError
from unlabeled.views.kernels.crop import Interpolation
from unlabeled.views.pipeline import Views


@dataclass(frozen=True)
class Preprocess:
    """A resized centre crop, values in [0, 1] or normalised: ``Views.evaluation_view`` as five values."""

    size: int  # height and width, pixels
    mean: Sequence[float] | None  # per channel, of values in [0, 1]; None: not subtracted
    std: Sequence[float] | None
    crop: float  # central share of the image's shorter side that is kept
    interpolation: Interpolation  # antialiased, as Pillow's

    def views(self, channels: int = 3) -> Views:
        """Returns the same as Views for our uint8 images of so many channels; draws no views."""
        return Views(self.size, [], self.mean, self.std, self.crop, self.interpolation, channels=channels)

    def as_dict(self) -> dict[str, Any]:
        """Returns the values as JSON stores them."""
        return asdict(self)

    def timm(self) -> dict[str, Any]:
        """Returns the keys of timm's ``pretrained_cfg``, which has no "not normalised": mean 0 and std 1 instead."""
        return {
            "input_size": (3, self.size, self.size),
            "interpolation": self.interpolation,
            "crop_pct": self.crop,
            "crop_mode": "center",
            "mean": tuple(self.mean or [0.0] * 3),
            "std": tuple(self.std or [1.0] * 3),
        }

    def snippet(self) -> str:
        """Returns Python lines that make ``images``, float32 [1, 3, size, size], from a file, by torchvision."""
        side = "min(image.size)" if self.crop == 1 else f"round({self.crop:g} * min(image.size))"
        lines = [
            "import torch",
            "from PIL import Image",
            "from torchvision.transforms import InterpolationMode",
            "from torchvision.transforms.v2 import functional as F",
            "",
            'image = Image.open("photograph.jpg").convert("RGB")',
            f"image = F.center_crop(image, [{side}])",
            f"image = F.resize(image, [{self.size}, {self.size}], InterpolationMode.{self.interpolation.upper()})",
            "images = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)[None]",
        ]
        if self.mean is not None and self.std is not None:
            lines.append(f"images = F.normalize(images, {list(self.mean)}, {list(self.std)})")
        return "\n".join(lines)


def read_preprocess(views: Mapping[str, Any]) -> Preprocess:
    """Reads the part of a views configuration that evaluation uses, as plain values.

    Raises:
        UserError: views of another kind, without these values.
    """
    keys = ("size", "mean", "std", "evaluation_crop", "evaluation_interpolation")
    missing = [key for key in keys if key not in views]
    if missing:
        raise UserError(f"views: these do not say {', '.join(missing)}: give views=…")
    return Preprocess(*(views[key] for key in keys))

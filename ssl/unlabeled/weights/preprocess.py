"""What a backbone's images must go through first, in a form that other libraries understand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unlabeled.errors import UserError
from unlabeled.views.kernels.crop import Interpolation
from unlabeled.views.pipeline import Views


@dataclass(frozen=True)
class Preprocess:
    """A centre crop, resized, values in [0, 1] or normalised: what ``Views.evaluation_view`` does, as five values."""

    size: int  # height and width, pixels
    mean: Sequence[float] | None  # per channel, of values in [0, 1]; None: not subtracted
    std: Sequence[float] | None
    crop: float  # central share of the image's shorter side that is kept
    interpolation: Interpolation  # antialiased, as Pillow's

    def views(self) -> Views:
        """The same for uint8 images of ours; draws no views."""
        return Views(self.size, [], self.mean, self.std, self.crop, self.interpolation)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def timm(self) -> dict[str, Any]:
        """The keys of timm's ``pretrained_cfg``, which cannot say "not normalised": a mean of 0, a std of 1."""
        return {
            "input_size": (3, self.size, self.size),
            "interpolation": self.interpolation,
            "crop_pct": self.crop,
            "crop_mode": "center",
            "mean": tuple(self.mean or [0.0] * 3),
            "std": tuple(self.std or [1.0] * 3),
        }

    def snippet(self) -> str:
        """Lines that make ``images``, float32 [1, 3, size, size], of a file, by torchvision."""
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
    """The part of a configuration of views that evaluation reads, as plain values.

    Raises:
        UserError: views of another kind, which do not say it.
    """
    keys = ("size", "mean", "std", "evaluation_crop", "evaluation_interpolation")
    missing = [key for key in keys if key not in views]
    if missing:
        raise UserError(f"views: these do not say {', '.join(missing)}: give views=…")
    return Preprocess(*(views[key] for key in keys))

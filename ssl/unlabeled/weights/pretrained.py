"""A backbone with its weights and its image transform, for use outside of this project."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unlabeled.data.decode import to_rgb
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.views.pipeline import Views
from unlabeled.weights.preprocess import Preprocess


class Transform:
    """Prepares images for the backbone as the evaluation does: centre crop, resized, in [0, 1] or normalised.

    Takes a Pillow image, a uint8 tensor [3, H, W] or array [H, W, 3] and gives float32 [3, size, size]; a tensor
    [B, 3, H, W], an array [B, H, W, 3] or a list of images gives [B, 3, size, size].
    """

    def __init__(self, preprocess: Preprocess, channels: int = 3) -> None:
        self.preprocess, self._views, self._channels = preprocess, preprocess.views(channels), channels

    def __call__(self, images: Any) -> Tensor:
        """Transforms images. Raises UserError for inputs of any other kind."""
        if self._channels != 3:
            raise UserError(
                f"the transform is for images of three colours, and the backbone takes {self._channels} channels: give"
                f" the backbone tensors [B, {self._channels}, {self.preprocess.size}, {self.preprocess.size}]"
            )
        if isinstance(images, list | tuple):
            if not images:
                raise UserError("images: the list is empty; give one or more")
            return torch.stack([self(image) for image in images])
        pixels = uint8_pixels(images)
        return (
            self._views.evaluation_view(pixels) if pixels.dim() == 4 else self._views.evaluation_view(pixels[None])[0]
        )

    @property
    def views(self) -> Views:
        """Returns the views whose ``evaluation_view`` does the same for images of different sizes at once."""
        return self._views


class Pretrained(nn.Module):
    """Maps images [B, 3, image_size, image_size] made by ``transform`` to features [B, num_features]; in eval mode.

    Args:
        backbone: with its weights.
        preprocess: its image transform.
    """

    def __init__(self, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone, self.transform = backbone, Transform(preprocess, backbone.channels)
        self.num_features, self.image_size = backbone.num_features, preprocess.size
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        """Returns further kinds of features, see :meth:`Backbone.features`."""
        return self.backbone.features(images, kinds)


def uint8_pixels(image: Any) -> Tensor:
    """Converts an image, or several in one array, to uint8 [3, H, W] or [B, 3, H, W]. Raises UserError for others."""
    if isinstance(image, Image.Image):
        return to_rgb(image, max(image.size), square=False)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, -3) if image.ndim in (3, 4) else image
    if not isinstance(image, Tensor):
        shape = f" of shape {list(image.shape)}" if isinstance(image, np.ndarray) else ""
        raise UserError(f"{type(image).__name__}{shape}: give a Pillow image, or uint8 [3, H, W], or array [H, W, 3]")
    if image.dtype != torch.uint8 or image.dim() not in (3, 4) or image.shape[-3] != 3:
        given = f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
        raise UserError(f"an image of {given}: give uint8 [3, H, W] or [B, 3, H, W], or an array with channels last")
    return image

"""Evaluation sees the centre of each image on a canvas, as torchvision would cut it out of that image alone."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unlabeled.data.padding import pad_to_largest
from unlabeled.views.pipeline import Views

SHAPES = [(64, 64), (40, 65), (67, 40), (32, 91), (3, 5), (1, 60), (60, 1)]


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8) for shape in SHAPES]


def views(interpolation: str, share: float) -> Views:
    return Views(24, [], None, None, share, interpolation)  # type: ignore[arg-type]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [1.0, 0.875, 0.5])
def test_plain_is_the_centre_crop_and_resize_of_torchvision_of_each_image(interpolation: str, share: float) -> None:
    together, sizes = pad_to_largest(images())
    made = views(interpolation, share).evaluation_view(together, sizes)
    for view, image, (height, width) in zip(made, images(), SHAPES, strict=True):
        side = max(1, round(min(height, width) * share))
        centre = F.center_crop(image, [side, side]).float() / 255
        expected = F.resize(centre, [24, 24], InterpolationMode(interpolation), antialias=True).clamp(0, 1)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_nothing_of_what_lies_beside_an_image_is_seen() -> None:
    together, sizes = pad_to_largest(images())
    assert sizes is not None
    other = torch.full_like(together, 255)
    for row, image in zip(other, images(), strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    for share in (1.0, 0.875):
        expected = views("bicubic", share).evaluation_view(together, sizes)
        assert torch.equal(views("bicubic", share).evaluation_view(other, sizes), expected)


def test_sizes_of_images_that_fill_the_canvas_change_nothing() -> None:
    filled = torch.stack([images()[0]] * 2)
    made = views("bicubic", 0.875).evaluation_view(filled, torch.tensor([[64, 64]] * 2))
    assert torch.equal(made, views("bicubic", 0.875).evaluation_view(filled))

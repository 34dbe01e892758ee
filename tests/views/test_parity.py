"""Given the same parameters, each operation equals torchvision's on real photographs, at usual and at odd sizes.

Held against torchvision on float tensors, where the largest differences measured, in 1/255, are 0.0002 for crops with
and without flip, 0.03 for grey, contrast and saturation (whose weight of red is 0.2989 instead of 0.299), 0.0005 for
hue, blur and brightness, and none for solarize and equalize. And against Pillow in 8 bits, which is within one level,
but for three things that are no reference here: its bicubic clips between rows and columns (up to 5/255 beside edges),
its hue rounds H, S and V to 8 bits (up to 9/255), and its blur is three box blurs.
"""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unlabeled.views.kernels.colour import color_jitter
from unlabeled.views.kernels.crop import Interpolation, crop_resize
from unlabeled.views.operations import Equalize, GaussianBlur, Grayscale, Solarize

CIFAR10 = Path(__file__).parents[2].parent / "shared/data/cifar10/test.parquet"
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
LEVEL = 1 / 255
SIZES = [(32, 32), (96, 96), (224, 224), (31, 47), (225, 150)]
BLENDS = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]


@pytest.fixture(scope="module", params=[*SIZES, "cifar"], ids=str)
def images(request: pytest.FixtureRequest) -> Tensor:
    """Uint8 [B, 3, H, W]: scikit-learn's two photographs at one size, or four images of CIFAR-10."""
    if request.param == "cifar":
        if not CIFAR10.exists():
            pytest.skip(f"no {CIFAR10}")
        files = pq.read_table(CIFAR10, columns=["image"]).slice(0, 4)["image"].to_pylist()
        return torch.stack([F.pil_to_tensor(Image.open(io.BytesIO(file["bytes"]))) for file in files])
    photographs = torch.stack([torch.tensor(picture).permute(2, 0, 1) for picture in load_sample_images().images])
    resized: Tensor = F.resize(photographs, list(request.param), antialias=True)
    return resized


def levels(image: Image.Image) -> Tensor:
    """Of Pillow's picture, uint8 [3, h, w] or [1, h, w]."""
    values: Tensor = F.pil_to_tensor(image)
    return values


def by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    return torch.stack([levels(change(F.to_pil_image(image))) for image in images]) / 255


def eight_bits(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def every(count: int) -> dict[str, Tensor]:
    return {"applied": torch.ones(count, dtype=torch.bool)}


def boxes_of(height: int, width: int) -> list[list[int]]:
    """The whole image, then one box at the middle of each border, then one at each corner."""
    h, w = height // 2 + 1, width // 3 + 1
    top, left, below, right = (height - h) // 2, (width - w) // 2, height - h, width - w
    places = [(0, left), (top, 0), (below, left), (top, right), (0, 0), (0, right), (below, 0), (below, right)]
    return [[0, 0, height, width], *([y, x, h, w] for y, x in places)]


def crops(images: Tensor, box: list[int], mirrored: bool, size: int, mode: Interpolation) -> Tensor:
    boxes, flip = torch.tensor([box] * len(images)), torch.tensor([mirrored] * len(images))
    return crop_resize(images, boxes, flip, size, mode)


@pytest.mark.parametrize("size", [17, 32, 96, 224])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_crops_at_each_border_and_the_flip_equal_torchvision_with_antialias(
    images: Tensor, mode: Interpolation, size: int
) -> None:
    scaled = images / 255
    for number, box in enumerate(boxes_of(*images.shape[2:])):
        theirs = F.resized_crop(scaled, *box, [size, size], interpolation=MODES[mode], antialias=True).clamp(0, 1)
        theirs = F.horizontal_flip(theirs) if number % 2 else theirs
        assert difference(crops(scaled, box, number % 2 == 1, size, mode), theirs) <= LEVEL / 10


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_crops_rounded_to_eight_bits_are_within_one_level_of_pillow(
    images: Tensor, mode: Interpolation, size: int
) -> None:
    """Bicubic on pictures of half the contrast: Pillow clips what overshoots after rows and again after columns."""
    images = images if mode == "bilinear" else images // 2 + 64
    for number, box in enumerate(boxes_of(*images.shape[2:])):

        def change(image: Image.Image, box: list[int] = box, mirrored: bool = number % 2 == 1) -> Image.Image:
            cut: Image.Image = F.resized_crop(image, *box, [size, size], interpolation=MODES[mode])
            return F.horizontal_flip(cut) if mirrored else cut

        ours = eight_bits(crops(images / 255, box, number % 2 == 1, size, mode))
        assert difference(ours, by_pillow(images, change)) <= LEVEL * 1.001


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.6, 1.4, 1.8])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["brightness", "contrast", "saturation"])
def test_brightness_contrast_and_saturation_equal_torchvision_and_pillow(
    images: Tensor, which: int, factor: float
) -> None:
    scaled, factors = images / 255, torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(len(images), 1)
    factors[:, which] = factor
    ours = color_jitter(scaled, factors, torch.arange(4).expand(len(images), 4))
    theirs = torch.stack([BLENDS[which](image, factor) for image in scaled])
    assert difference(ours, theirs) <= LEVEL / 10
    in_eight_bits = by_pillow(images, lambda image: BLENDS[which](image, factor))
    assert difference(eight_bits(ours), in_eight_bits) <= LEVEL * 1.001
    assert difference(ours, scaled) > 10 * LEVEL


@pytest.mark.parametrize("shift", [-0.5, -0.31, -0.1, 0.02, 0.1, 0.25, 0.5])
def test_hue_equals_torchvision(images: Tensor, shift: float) -> None:
    scaled, factors = images / 255, torch.tensor([[1.0, 1.0, 1.0, shift]]).repeat(len(images), 1)
    ours = color_jitter(scaled, factors, torch.arange(4).expand(len(images), 4))
    assert difference(ours, F.adjust_hue(scaled, shift)) <= LEVEL / 10
    assert difference(ours, F.adjust_hue(images, shift) / 255) <= 2 * LEVEL
    assert difference(ours, scaled) > 5 * LEVEL


def test_grayscale_equals_torchvision_and_pillow(images: Tensor) -> None:
    ours = Grayscale(0.2).apply(images / 255, every(len(images)))
    assert difference(ours, F.rgb_to_grayscale(images / 255, num_output_channels=3)) <= LEVEL / 10
    in_eight_bits = by_pillow(images, lambda image: F.rgb_to_grayscale(image, num_output_channels=3))
    assert difference(eight_bits(ours), in_eight_bits) <= LEVEL * 1.001


@pytest.mark.parametrize("threshold", [0, 100, 128, 255])
def test_solarize_equals_torchvision_and_pillow_level_by_level(images: Tensor, threshold: int) -> None:
    ours = Solarize(threshold / 255, 0.2).apply(images / 255, every(len(images)))
    assert difference(ours, F.solarize(images / 255, threshold / 255)) == 0
    assert torch.equal((ours * 255).round().to(torch.uint8), F.solarize(images, threshold))
    assert difference(eight_bits(ours), by_pillow(images, lambda image: F.solarize(image, threshold))) == 0


def test_equalize_equals_torchvision_and_pillow_level_by_level(images: Tensor) -> None:
    ours = Equalize(0.2).apply(images / 255, every(len(images)))
    assert torch.equal((ours * 255).round().to(torch.uint8), F.equalize(images))
    assert difference(eight_bits(ours), by_pillow(images, F.equalize)) == 0


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_torchvision_up_to_the_border(images: Tensor, sigma: float) -> None:
    taps = 2 * (int(images.shape[-1] * 0.1) // 2) + 1
    drawn = {"sigma": torch.full((len(images),), sigma), **every(len(images))}
    ours = GaussianBlur((0.1, 2.0), 0.1, 0.5).apply(images / 255, drawn)
    assert difference(ours, F.gaussian_blur(images / 255, [taps, taps], [sigma, sigma])) <= LEVEL / 10
    assert difference(ours, F.gaussian_blur(images, [taps, taps], [sigma, sigma]) / 255) <= 2 * LEVEL

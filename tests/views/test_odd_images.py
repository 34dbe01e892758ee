"""A batch of one, tiny, thin, grey, transparent and 16-bit images: right views, or one clear error."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from tests.small import CONF, composed
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError
from unlabeled.views.cutout import Cutout
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import (
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Operation,
    RandomResizedCrop,
    Solarize,
)
from unlabeled.views.padded_crop import RandomCrop
from unlabeled.views.pipeline import ViewGroup, Views
from unlabeled.views.rand_augment import RandAugment


def built(name: str) -> Views:
    config = composed(f"views={name}")
    config.views.update({key: None for key in config.views if OmegaConf.is_missing(config.views, key)})
    views: Views = instantiate(config.views)
    return views


def uint8_images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def pipeline(*operations: Operation) -> Views:
    crop = RandomResizedCrop(16, (0.08, 1.0), (0.75, 4 / 3), "bicubic", 0.5)
    return Views(16, [ViewGroup(1, [crop, *operations])], None, None, 0.875, "bicubic")


def everything() -> Views:
    return pipeline(
        ColorJitter(0.8, 0.8, 0.8, 0.2, 0.8),
        Grayscale(0.5),
        GaussianBlur((0.1, 2.0), 0.2, 0.8),
        Solarize((0.0, 1.0), 0.8),
        Equalize(0.8),
    )


def one_view(views: Views, images: Tensor, first: int = 0, total: int | None = None) -> Tensor:
    ids = torch.arange(len(images))
    made: Tensor = views(images, ids, ViewKey(0, 0, first, total or len(images)))[0]
    return made


def test_an_image_alone_on_its_process_has_the_view_that_it_has_among_others() -> None:
    images = uint8_images(12, 20, 30)
    whole = one_view(everything(), images)
    for row in range(12):
        alone = one_view(everything(), images[row : row + 1], row, 12)
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "views").glob("*.yaml")))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (1, 40), (60, 2)])
def test_every_pipeline_makes_whole_views_of_one_tiny_or_thin_image(name: str, height: int, width: int) -> None:
    views = built(name)
    colour = torch.tensor([200, 30, 90], dtype=torch.uint8)
    images = colour[None, :, None, None].expand(1, 3, height, width)
    made = views(images, torch.zeros(1, dtype=torch.long), ViewKey(0, 0, 0, 1))
    operations = [each for group in views.groups for each in group.operations]
    if any(isinstance(each, RandAugment | Cutout) for each in operations):  # they paint with colours of their own
        pixels = views.to_pixels(made[0])
        assert pixels.shape == (1, 3, views.size, views.size)
        assert -1e-6 <= float(pixels.min()) <= float(pixels.max()) <= 1 + 1e-6
        made = ()
    elif any(isinstance(each, RandomCrop) for each in operations):
        black = views.to_pixels(made[0]).abs().amax(1) < 1e-3  # its border
        made = (torch.where(black[:, None], views.evaluation_view(images)[:, :, :1, :1], made[0]),)
        assert 0 < float(black.float().mean()) < 0.5
    for view in (*made, views.evaluation_view(images)):
        spread = view.flatten(2).amax(2) - view.flatten(2).amin(2)
        assert float(spread.max()) < 1e-4  # of one colour, up to each corner
    expected = views.to_pixels(views.evaluation_view(images))[0, :, 0, 0] * 255
    torch.testing.assert_close(expected, colour.float(), rtol=0, atol=1e-2)


@pytest.mark.parametrize(("height", "width", "ratio"), [(1, 10, (0.3, 0.4)), (10, 1, (2.5, 3.0))])
def test_a_box_has_a_pixel_even_where_torchvisions_fallback_has_none(
    height: int, width: int, ratio: tuple[float, float]
) -> None:
    crop = RandomResizedCrop(4, (0.5, 1.0), ratio, "bilinear", 0.5)
    boxes = crop.boxes(crop.sample(3, torch.Generator().manual_seed(0)), torch.tensor([[height, width]]).expand(3, 2))
    assert boxes[:, 2:].tolist() == [[1, 1]] * 3
    view = one_view(Views(4, [ViewGroup(1, [crop])], None, None, 1.0, "bilinear"), uint8_images(3, height, width))
    assert bool(view.isfinite().all())


@pytest.mark.parametrize("pixels", [1, 2, 3, 7])
def test_operations_after_the_crop_work_on_views_of_a_few_pixels(pixels: int) -> None:
    crop = RandomResizedCrop(pixels, (0.08, 1.0), (0.75, 4 / 3), "bicubic", 0.5)
    views = Views(pixels, [ViewGroup(1, [crop, *everything().groups[0].operations[1:]])], None, None, 1.0, "bicubic")
    made = one_view(views, uint8_images(64, 9, 9))
    assert tuple(made.shape) == (64, 3, pixels, pixels)
    assert 0 <= float(made.min()) < float(made.max()) <= 1


def pictures() -> dict[str, tuple[Image.Image, list[int]]]:
    """Name → an image of one colour, and that colour in RGB."""
    deep = Image.fromarray(np.full((9, 9), 257 * 80, dtype=np.uint16))
    return {
        "1-channel": (Image.new("L", (9, 9), 70), [70, 70, 70]),
        "2-channel": (Image.new("LA", (9, 9), (70, 5)), [70, 70, 70]),
        "4-channel": (Image.new("RGBA", (9, 9), (200, 100, 50, 0)), [200, 100, 50]),
        "palette": (Image.new("RGB", (9, 9), (10, 20, 30)).quantize(4), [10, 20, 30]),
        "one-pixel": (Image.new("RGB", (1, 1), (1, 2, 3)), [1, 2, 3]),
        "thin": (Image.new("RGB", (50, 1), (4, 5, 6)), [4, 5, 6]),
        "uint16": (deep, [80, 80, 80]),
    }


def test_files_with_one_two_and_four_channels_16_bits_or_few_pixels_give_views_of_their_colour(tmp_path: Path) -> None:
    for name, (picture, _) in pictures().items():
        picture.save(tmp_path / f"{name}.png")
    source = folder(str(tmp_path), image_size=24, square=True).train
    images = torch.stack([source.decode(index) for index in range(len(source))])
    view = one_view(pipeline(), images)
    for row, name in zip(view, sorted(pictures()), strict=True):
        expected = torch.tensor(pictures()[name][1])[:, None, None] / 255
        torch.testing.assert_close(row, expected.expand(3, 16, 16), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"uint8 \[2, 1, 8, 8\]"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), r"uint8 \[2, 4, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint16), r"uint16 \[2, 3, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8), r"float32 \[2, 3, 8, 8\]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"uint8 \[3, 8, 8\]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"uint8 \[2, 8, 8, 3\]"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), r"uint8 \[2, 3, 0, 8\]"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"uint8 \[0, 3, 8, 8\]"),
    ],
)
def test_tensors_of_another_kind_cost_one_line_in_training_and_in_evaluation(images: Tensor, given: str) -> None:
    views = pipeline()
    with pytest.raises(UserError, match=rf"uint8 \[B, 3, H, W\], and not of {given}: unlabeled\.data\.decode\.to_rgb"):
        one_view(views, images, total=2)
    with pytest.raises(UserError, match=given):
        views.evaluation_view(images)

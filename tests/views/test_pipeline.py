"""Views are a function of (seed, step, position, view) and of nothing else; evaluation sees torchvision's picture."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tests.small import composed
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import ColorJitter, GaussianBlur, Grayscale, RandomResizedCrop, Solarize
from unlabeled.views.pipeline import ViewGroup, Views

CONF = Path(__file__).parents[2] / "conf"
IDS = torch.arange(6)
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def uint8_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def small(size: int, count: int) -> ViewGroup:
    return ViewGroup(
        count,
        [
            RandomResizedCrop(size, (0.3, 1.0), (0.75, 4 / 3), "bicubic", 0.5),
            ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8),
            Grayscale(0.2),
            GaussianBlur((0.1, 2.0), 0.2, 0.5),
        ],
    )


def pipeline(mean: list[float] | None = None, std: list[float] | None = None, crop: float = 1.0) -> Views:
    return Views(24, [small(24, 2), small(12, 1)], mean, std, crop, "bicubic")


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_first_views_alone_are_those_that_all_begin_with() -> None:
    views, images, key = pipeline(), uint8_images(6, 32, 40), ViewKey(3, 7, 0, 6)
    whole = views(images, torch.arange(6), key)
    assert len(whole) == 3
    for first in (1, 2):
        assert equal(views(images, torch.arange(6), key, first=first), whole[:first])


def test_the_same_key_gives_the_same_views_bit_for_bit_and_the_global_random_state_is_neither_read_nor_moved() -> None:
    views, images, key = pipeline(), uint8_images(6, 32, 40), ViewKey(3, 7, 0, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        first = views(images, IDS, key)
        after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        torch.manual_seed(99)
        second = views(images, IDS, key)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert equal(first, second)
    assert [tuple(view.shape) for view in first] == [(6, 3, 24, 24), (6, 3, 24, 24), (6, 3, 12, 12)]


@pytest.mark.parametrize("key", [ViewKey(4, 7, 0, 6), ViewKey(3, 8, 0, 6), ViewKey(7, 3, 0, 6)])
def test_another_seed_or_step_gives_other_views_of_every_image(key: ViewKey) -> None:
    views, images = pipeline(), uint8_images(6, 32, 32)
    for one, other in zip(views(images, IDS, ViewKey(3, 7, 0, 6)), views(images, IDS, key), strict=True):
        assert float((one - other).abs().amax((1, 2, 3)).min()) > 0.05


def test_the_views_of_an_image_differ_from_each_other_and_so_do_those_of_equal_images() -> None:
    image = uint8_images(1, 32, 32).expand(6, 3, 32, 32)
    first, second, _ = pipeline()(image, IDS, ViewKey(0, 0, 0, 6))
    assert float((first - second).abs().amax((1, 2, 3)).min()) > 0.05
    rows = first.flatten(1)
    assert float((torch.cdist(rows, rows) + 1e3 * torch.eye(6)).min()) > 0.5


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_global_batch_split_over_processes_gives_the_views_of_one_process(processes: int) -> None:
    views, images = pipeline(), uint8_images(12, 32, 40)
    whole = views(images, torch.arange(12), ViewKey(0, 5, 0, 12))
    share = 12 // processes
    parts = [
        views(images[rows], torch.arange(12)[rows], ViewKey(0, 5, rows.start, 12))
        for rows in (slice(first, first + share) for first in range(0, 12, share))
    ]
    for number, view in enumerate(whole):
        joined = torch.cat([part[number] for part in parts])
        # bit-identical here; a convolution may add in another order when a batch has another size
        torch.testing.assert_close(joined, view, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [24, 80])  # small views are made together, large ones one by one
def test_views_in_blocks_are_bit_for_bit_those_of_one_operation_after_the_other(size: int) -> None:
    groups = [small(size, 2), ViewGroup(1, [*small(size, 1).operations, Solarize(0.5, 0.5)])]
    views, images, key = Views(size, groups, MEAN, STD, 1.0, "bicubic"), uint8_images(12, 24, 24), ViewKey(3, 7, 4, 20)
    views.block = 4
    made = views(images, torch.arange(12), key)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    for number, group in enumerate([groups[0], *groups]):
        generator, plain = key.generator(number), images.float() / 255
        for operation in group.operations:
            drawn = operation.sample(20, generator)
            plain = operation.apply(plain, {name: values[4:16] for name, values in drawn.items()})
        assert torch.equal(made[number], (plain - mean) / std)


def test_plain_of_an_image_of_the_right_size_is_the_image() -> None:
    images = uint8_images(3, 24, 24)
    torch.testing.assert_close(pipeline().evaluation_view(images), images.float() / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("pixels", [12, 31, 64])
def test_plain_of_another_size_is_the_resize_of_torchvision(pixels: int, interpolation: str) -> None:
    images = uint8_images(2, pixels, pixels)
    views = Views(24, [], None, None, 1.0, interpolation)  # type: ignore[arg-type]
    theirs = F.resize(images.float() / 255, [24, 24], InterpolationMode(interpolation), antialias=True)
    torch.testing.assert_close(views.evaluation_view(images), theirs.clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 65), (57, 32)])
@pytest.mark.parametrize("share", [0.875, 0.5, 1.0])
def test_plain_keeps_the_central_share_of_the_shorter_side(height: int, width: int, share: float) -> None:
    images, side = uint8_images(2, height, width), round(min(height, width) * share)
    top, left = round((height - side) / 2), round((width - side) / 2)
    cut = images[:, :, top : top + side, left : left + side].float() / 255
    theirs = F.resize(cut, [24, 24], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    torch.testing.assert_close(pipeline(crop=share).evaluation_view(images), theirs, rtol=0, atol=1e-5)


def test_mean_and_std_are_applied_once_at_the_very_end_of_views_and_of_plain() -> None:
    images, key = uint8_images(4, 32, 32), ViewKey(0, 0, 0, 4)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    with_it, without = pipeline(MEAN, STD), pipeline()
    for normalised, raw in zip(with_it(images, IDS[:4], key), without(images, IDS[:4], key), strict=True):
        torch.testing.assert_close(normalised, (raw - mean) / std, rtol=0, atol=1e-6)
        assert 0 <= float(raw.min()) <= float(raw.max()) <= 1
    torch.testing.assert_close(
        with_it.evaluation_view(images), (without.evaluation_view(images) - mean) / std, rtol=0, atol=1e-6
    )


def test_views_leave_the_images_they_were_made_of_as_they_were_and_carry_no_gradient() -> None:
    images = uint8_images(4, 32, 32)
    before = images.clone()
    made = pipeline()(images, IDS[:4], ViewKey(0, 0, 0, 4))
    assert torch.equal(images, before)
    assert not any(view.requires_grad for view in made)
    assert [view.dtype for view in made] == [torch.float32] * 3


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "views").glob("*.yaml")))
def test_each_yaml_builds_and_gives_views_of_the_stated_shape_within_zero_and_one(name: str) -> None:
    config = composed(f"views={name}")
    config.views.update({key: None for key in config.views if OmegaConf.is_missing(config.views, key)})
    views: Views = instantiate(config.views)
    made = views(uint8_images(2, 80, 96), IDS[:2], ViewKey(0, 0, 0, 2))
    sizes = [
        next(operation.size for operation in group.operations if isinstance(operation, RandomResizedCrop))
        for group in views.groups
        for _ in range(group.count)
    ]
    assert [tuple(view.shape) for view in made] == [(2, 3, size, size) for size in sizes]
    mean = torch.tensor(views.mean or [0.0] * 3)[:, None, None]
    std = torch.tensor(views.std or [1.0] * 3)[:, None, None]
    for view in (*made, views.evaluation_view(uint8_images(2, 80, 96))):
        raw = view * std + mean
        assert -1e-5 <= float(raw.min()) <= float(raw.max()) <= 1 + 1e-5
        assert float(raw.max() - raw.min()) > 0.1

"""Foreign transforms are a function of the key and the position in the global batch, and leave no trace behind."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn
from torchvision.transforms import v2

from tests.small import composed
from unlabeled.commands.config import check_keys
from unlabeled.errors import UserError
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import Grayscale, RandomResizedCrop
from unlabeled.views.per_image import PerImageTransform
from unlabeled.views.pipeline import ViewGroup, Views

CONF = Path(__file__).parents[2] / "conf"


def python_and_numpy(image: Tensor) -> Tensor:
    return image * random.random() + (1 - image) * float(np.random.rand())


TRANSFORMS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "kornia, one value per image": lambda: K.RandomPosterize((2, 6), p=0.7),
    "kornia, a table of colours": lambda: K.RandomPlanckianJitter(p=0.7),
    "kornia, several": lambda: K.AugmentationSequential(K.RandomRotation(20.0), K.RandomGaussianNoise(std=0.1)),
    "torchvision, some images": lambda: v2.RandomAdjustSharpness(2.0, p=0.7),
    "torchvision, a value per pixel": lambda: v2.GaussianNoise(sigma=0.1),
    "torchvision, several": lambda: v2.Compose([v2.RandomErasing(p=0.7), v2.RandomApply([v2.RandomRotation(30)])]),
    "neither, from Python and numpy": lambda: python_and_numpy,
}


def uint8_images(count: int, size: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def pipeline(transform: Callable[[Tensor], Tensor]) -> Views:
    """A crop, the transform, and something after it, whose draws must not depend on what it drew."""
    crop = RandomResizedCrop(16, (0.3, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    return Views(16, [ViewGroup(2, [crop, PerImageTransform(transform), Grayscale(0.3)])], None, None, 1.0, "bilinear")


def views_of(name: str, step: int, rows: slice = slice(0, 12)) -> Tensor:
    """The two views [2, b, 3, 16, 16] of these rows of a global batch of 12, by a pipeline made anew."""
    ids, key = torch.arange(12)[rows], ViewKey(5, step, rows.start, 12)
    return torch.stack(pipeline(TRANSFORMS[name]())(uint8_images(12)[rows], ids, key))


def foreign_only(transform: Callable[[Tensor], Tensor]) -> Views:
    return Views(24, [ViewGroup(1, [PerImageTransform(transform)])], None, None, 1.0, "bilinear")


def made(transform: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    count = len(images)
    view: Tensor = foreign_only(transform)(images, torch.arange(count), ViewKey(0, 0, 0, count))[0]
    return view


@pytest.mark.parametrize("processes", [2, 3, 12])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_several_processes_make_the_views_of_one_bit_for_bit(name: str, processes: int) -> None:
    share = 12 // processes
    parts = [views_of(name, 3, slice(first, first + share)) for first in range(0, 12, share)]
    assert torch.equal(torch.cat(parts, 1), views_of(name, 3))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_resumed_run_sees_the_same_views_whatever_was_drawn_before_and_the_next_step_others(name: str) -> None:
    first = views_of(name, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(views_of(name, 3), first)
    assert not torch.equal(views_of(name, 4), first)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_images_and_views_draw_for_themselves(name: str) -> None:
    transform, count = TRANSFORMS[name](), 12
    images = uint8_images(1).expand(count, 3, 24, 24)
    views = Views(24, [ViewGroup(2, [PerImageTransform(transform)])], None, None, 1.0, "bilinear")
    first, second = views(images, torch.arange(count), ViewKey(0, 0, 0, count))
    assert len({row.numpy().tobytes() for row in first}) >= 2  # sharpened and not
    assert not torch.equal(first, second)


def failing(image: Tensor) -> Tensor:
    """Draws from each of the three, and does not come back."""
    return python_and_numpy(image) * torch.rand(1) * (1 // 0)


def state() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def test_the_global_random_state_of_torch_python_and_numpy_is_put_back_even_after_an_error() -> None:
    before = state()
    for name in TRANSFORMS:
        views_of(name, 0)
    assert state() == before
    with pytest.raises(ZeroDivisionError):
        made(failing, uint8_images(2))
    assert state() == before


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_image_is_what_the_transform_alone_makes_of_it_under_its_seed(name: str) -> None:
    operation, images = PerImageTransform(TRANSFORMS[name]()), uint8_images(4) / 255
    drawn = operation.sample(4, torch.Generator().manual_seed(1))
    ours = operation.apply(images, drawn)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        for row, image, seed in zip(ours, images, drawn["seed"].tolist(), strict=True):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            assert torch.equal(row, TRANSFORMS[name]()(image[None])[0].clamp(0, 1))
    np.random.set_state(numpy_state)
    random.setstate(python_state)


@pytest.mark.parametrize("transform", [K.RandomPosterize((2, 2), p=0.3), v2.RandomAdjustSharpness(3.0, p=0.3)])
def test_the_share_of_changed_images_is_the_transforms_own(transform: nn.Module) -> None:
    images = uint8_images(1, 4).expand(2000, 3, 4, 4)
    changed = (made(transform, images) != images / 255).flatten(1).any(1)
    assert abs(float(changed.float().mean()) - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5


def test_what_overshoots_is_clamped_to_zero_and_one() -> None:
    images = uint8_images(3)
    assert torch.equal(made(lambda image: 3 * image - 1, images), (3 * (images / 255) - 1).clamp(0, 1))


def test_a_transform_that_writes_into_its_image_leaves_the_other_views_alone() -> None:
    erase, images, key = PerImageTransform(v2.RandomErasing(p=1.0, inplace=True)), uint8_images(3), ViewKey(0, 0, 0, 3)
    views = Views(24, [ViewGroup(1, [erase]), ViewGroup(1, [])], None, None, 1.0, "bilinear")
    erased, whole = views(images, torch.arange(3), key)
    assert torch.equal(whole, images / 255)
    assert bool((erased != whole).flatten(1).any(1).all())


def growing() -> Callable[[Tensor], Tensor]:
    sizes = iter(range(8, 100))
    return lambda image: image[:, :, : next(sizes)]


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (growing(), "gives images of several sizes; crop them to one"),
        (v2.ToDtype(torch.uint8, scale=True), r"ToDtype gives uint8 \[1, 3, 24, 24\] for float"),
        (v2.Grayscale(1), r"Grayscale gives float32 \[1, 1, 24, 24\] for float \[1, 3, 24, 24\]"),
        (v2.Lambda(lambda image: (image, 1)), "Lambda gives a tuple, and not a tensor"),
    ],
)
def test_what_is_no_image_of_the_usual_kind_costs_one_line(transform: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(transform, uint8_images(2))


@pytest.mark.parametrize("normalise", [v2.Normalize([0.5], [0.5]), K.Normalize(torch.zeros(3), torch.ones(3))])
def test_a_normalize_anywhere_within_is_refused_because_views_normalise_last(normalise: nn.Module) -> None:
    for transform in (normalise, v2.Compose([v2.RandomErasing(), normalise])):
        with pytest.raises(UserError, match=r"give views\.mean and views\.std"):
            PerImageTransform(transform)


def with_transform(transform: dict[str, Any], wrapped: bool = True) -> DictConfig:
    config = composed("views=simclr_small", "data=digits")
    with open_dict(config):
        foreign = {"_target_": "unlabeled.views.per_image.PerImageTransform", "transform": transform}
        config.views.groups[0].operations.append(foreign if wrapped else transform)
    return config


SHARPNESS = {"_target_": "torchvision.transforms.v2.RandomAdjustSharpness", "sharpness_factor": 2.0, "p": 0.5}
POSTERIZE = {"_target_": "kornia.augmentation.RandomPosterize", "bits": [2, 6], "p": 0.5}
BOTH = {"_target_": "torchvision.transforms.v2.Compose", "transforms": [SHARPNESS, POSTERIZE]}


@pytest.mark.parametrize("transform", [SHARPNESS, POSTERIZE, BOTH], ids=lambda config: str(config["_target_"]))
def test_a_yaml_names_it_by_target_and_its_keys_are_checked_before_an_image_is_read(transform: dict[str, Any]) -> None:
    made = []
    for wrapped in (True, False):
        config = with_transform(transform, wrapped)
        check_keys(config, CONF / "train.yaml")
        views: Views = instantiate(config.views)
        made.append(views(uint8_images(6, 40), torch.arange(6), ViewKey(0, 0, 0, 6)))
    for view, alone in zip(*made, strict=True):
        assert tuple(view.shape) == (6, 3, 32, 32)
        assert 0 <= float(view.min()) < float(view.max()) <= 1
        assert torch.equal(view, alone)  # a transform by itself is put into a Foreign


def test_what_is_neither_an_operation_nor_a_transform_costs_one_line() -> None:
    with pytest.raises(UserError, match=r"views\.groups: 0\.5 is no operation and no transform"):
        ViewGroup(1, [0.5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (
            SHARPNESS | {"sharpnes_factor": 1.0},
            r"operations\[3\]\.transform\.sharpnes_factor: no such key; did you mean",
        ),
        (
            POSTERIZE | {"probability": 0.5},
            r"transform\.probability: no such key; .*allowed: bits, keepdim, p, same_on",
        ),
        (POSTERIZE | {"_target_": "kornia.augmentation.RandomPosterise"}, "RandomPosterise: cannot be found"),
        (BOTH | {"transforms": [SHARPNESS | {"q": 1}]}, r"transform\.transforms\[0\]\.q: no such key"),
    ],
)
def test_a_mistyped_key_within_a_foreign_transform_costs_one_line(transform: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_keys(with_transform(transform), CONF / "train.yaml")

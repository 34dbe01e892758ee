"""Parameters are drawn from the distributions of torchvision's own samplers: 20,000 draws of each, at fixed seeds.

Kolmogorov and Smirnov's two-sample test for numbers, chi-squared for orders, fallbacks and what is applied at all.
Nothing may be rejected at 1e-3; a factor drawn by another rule (TF's additive one, kornia's) gives p = 0 here.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scipy.stats import chi2_contingency, ks_2samp  # type: ignore[import-untyped]
from torch import Generator, Tensor
from torchvision import transforms as theirs

from unlabeled.views.operations import (
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Operation,
    RandomResizedCrop,
    Solarize,
)

DRAWS, REJECTED = 20_000, 1e-3
USUAL = (3 / 4, 4 / 3)
# height, width, scale, ratio: SimCLR's, MoCo's and multi-crop's ranges; the last four need the fallback
CROPS = [
    (32, 32, (0.08, 1.0), USUAL),
    (375, 500, (0.2, 1.0), USUAL),
    (500, 333, (0.14, 1.0), USUAL),
    (224, 224, (0.05, 0.14), USUAL),
    (31, 47, (0.3, 1.0), (0.5, 2.0)),
    (100, 250, (0.3, 1.0), USUAL),
    (40, 400, (0.08, 1.0), USUAL),
    (700, 60, (0.08, 1.0), USUAL),
    (300, 100, (0.9, 1.0), (0.3, 0.4)),
]
ORDERS = list(itertools.permutations(range(4)))


@pytest.fixture(autouse=True)
def torchvisions_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def ours(operation: Operation) -> dict[str, Tensor]:
    return operation.sample(DRAWS, Generator().manual_seed(0))


def boxes_of(operation: RandomResizedCrop, height: int, width: int) -> Tensor:
    return operation.boxes(ours(operation), torch.tensor([[height, width]]).expand(DRAWS, 2))


def same_numbers(one: Tensor, other: Tensor) -> float:
    """p-value of both coming from one distribution."""
    return float(ks_2samp(one.numpy(), other.numpy()).pvalue)


def same_counts(one: Tensor, other: Tensor) -> float:
    """The same for whole numbers from 0: each value's count in the one and in the other."""
    kinds = int(max(one.max(), other.max())) + 1
    table = torch.stack([torch.bincount(each.long(), minlength=kinds) for each in (one, other)])
    table = table[:, table.sum(0) > 0]
    return float(chi2_contingency(table.numpy()).pvalue) if table.shape[1] > 1 else 1.0


def measures(boxes: Tensor) -> dict[str, Tensor]:
    top, left, height, width = boxes.unbind(1)
    return {"area": height * width, "ratio": width / height, "top": top, "left": left, "bottom": top + height}


@pytest.mark.parametrize(("height", "width", "scale", "ratio"), CROPS)
def test_area_ratio_position_and_fallback_of_a_box_are_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    operation = RandomResizedCrop(8, scale, ratio, "bilinear", 0.5)
    boxes, blank = boxes_of(operation, height, width), torch.zeros(3, height, width)
    drawn = [theirs.RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(DRAWS)]
    other = torch.tensor(drawn)
    for (name, one), two in zip(measures(boxes).items(), measures(other).values(), strict=True):
        assert same_numbers(one, two) > REJECTED, name
    extreme = theirs.RandomResizedCrop.get_params(blank, [9.0, 9.0], list(ratio))  # too large: always the fallback
    fallen = [(each == torch.tensor(extreme)).all(1) for each in (boxes, other)]
    assert same_counts(*fallen) > REJECTED
    if (height, width, scale, ratio) in CROPS[-4:]:
        assert float(fallen[0].float().mean()) > 0.001


def test_within_one_image_a_box_lies_as_likely_at_one_border_as_at_the_other() -> None:
    boxes = boxes_of(RandomResizedCrop(8, (0.08, 1.0), USUAL, "bilinear", 0.5), 32, 32)
    top, left, height, width = boxes.unbind(1)
    assert same_numbers(top, 32 - top - height) > REJECTED
    assert same_numbers(left, 32 - left - width) > REJECTED


def colour_jitters(brightness: float, contrast: float, saturation: float, hue: float) -> tuple[Tensor, Tensor]:
    """Orders [N, 4] and factors [N, 4] of torchvision's ColorJitter."""
    transform = theirs.ColorJitter(brightness, contrast, saturation, hue)
    ranges = (transform.brightness, transform.contrast, transform.saturation, transform.hue)
    drawn = [transform.get_params(*ranges) for _ in range(DRAWS)]
    return torch.stack([each[0] for each in drawn]), torch.tensor([each[1:] for each in drawn])


@pytest.mark.parametrize("strengths", [(0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.2, 0.1), (1.4, 0.6, 1.0, 0.5)])
def test_factors_and_orders_of_colour_jitter_are_torchvisions(strengths: tuple[float, float, float, float]) -> None:
    drawn = ours(ColorJitter(*strengths, probability=0.8))
    order, factors = colour_jitters(*strengths)
    for which, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert same_numbers(drawn["factors"][:, which], factors[:, which]) > REJECTED, name
    assert same_counts(numbered(drawn["order"]), numbered(order)) > REJECTED
    for turn in range(4):
        assert same_counts(drawn["order"][:, turn], order[:, turn]) > REJECTED


def numbered(order: Tensor) -> Tensor:
    """0 … 23 for each permutation of four."""
    place = {permutation: number for number, permutation in enumerate(ORDERS)}
    return torch.tensor([place[tuple(row)] for row in order.tolist()])


@pytest.mark.parametrize("sigma", [(0.1, 2.0), (0.5, 1.0)])
def test_the_widths_of_blurs_are_torchvisions(sigma: tuple[float, float]) -> None:
    other = torch.tensor([theirs.GaussianBlur.get_params(*sigma) for _ in range(DRAWS)])
    assert same_numbers(ours(GaussianBlur(sigma, 0.1, 0.5))["sigma"], other) > REJECTED


def applied_by(transform: Callable[[Any], Any], image: Tensor) -> Tensor:
    """Which of 20,000 calls changed the image."""
    return torch.tensor([not torch.equal(transform(image), image) for _ in range(DRAWS)])


PICTURE = (torch.arange(3 * 16 * 17) % 251).to(torch.uint8).view(3, 16, 17) // 2
PIXELS = torch.tensor([[[10, 250]], [[200, 20]], [[90, 30]]], dtype=torch.uint8)
RATES: dict[str, tuple[Callable[[float], Operation], Callable[[float], Any], Tensor]] = {
    "grayscale": (Grayscale, theirs.RandomGrayscale, PIXELS),
    "solarize": (lambda p: Solarize(128 / 255, p), lambda p: theirs.RandomSolarize(128, p), PIXELS),
    "equalize": (Equalize, theirs.RandomEqualize, PICTURE),
    "jitter": (
        lambda p: ColorJitter(0.8, 0.8, 0.8, 0.2, p),
        lambda p: theirs.RandomApply([theirs.RandomVerticalFlip(1.0)], p),
        PIXELS.mT,
    ),
    "blur": (
        lambda p: GaussianBlur((0.1, 2.0), 0.1, p),
        lambda p: theirs.RandomApply([theirs.RandomVerticalFlip(1.0)], p),
        PIXELS.mT,
    ),
}


@pytest.mark.parametrize("probability", [0.2, 0.8])
@pytest.mark.parametrize("name", RATES)
def test_each_operation_is_applied_as_often_as_torchvisions(name: str, probability: float) -> None:
    make, transform, image = RATES[name]
    drawn = ours(make(probability))["applied"]
    assert same_counts(drawn, applied_by(transform(probability), image)) > REJECTED
    assert same_counts(drawn, torch.rand(DRAWS) < probability + 0.03) < REJECTED  # three points would be seen


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_images_are_mirrored_as_often_as_torchvisions(probability: float) -> None:
    flip = ours(RandomResizedCrop(8, (0.08, 1.0), USUAL, "bilinear", probability))["flip"]
    other = applied_by(theirs.RandomHorizontalFlip(probability), PIXELS)
    assert same_counts(flip, other) > REJECTED


def test_what_is_drawn_for_one_operation_says_nothing_of_another_nor_of_the_next_image() -> None:
    generator = Generator().manual_seed(0)
    crop = RandomResizedCrop(8, (0.08, 1.0), USUAL, "bilinear", 0.5).sample(DRAWS, generator)
    jitter = ColorJitter(0.8, 0.8, 0.8, 0.2, 0.8).sample(DRAWS, generator)
    grey = Grayscale(0.2).sample(DRAWS, generator)["applied"]
    blur = GaussianBlur((0.1, 2.0), 0.1, 0.5).sample(DRAWS, generator)
    chances = [crop["flip"], jitter["applied"], grey, blur["applied"], jitter["order"][:, 0] == 0]
    for one, other in itertools.combinations(chances, 2):
        assert same_counts(other[one], other[~one]) > REJECTED
    for each in chances:
        assert same_counts(each[1:][each[:-1]], each[1:][~each[:-1]]) > REJECTED
    places = [crop["area"][:, 0].float(), crop["ratio"][:, 0].float(), *crop["where"].float().unbind(1)]
    numbers = torch.stack([*places, *jitter["factors"].unbind(1), blur["sigma"]])
    correlation = torch.corrcoef(numbers) - torch.eye(len(numbers))
    assert float(correlation.abs().max()) < 4 / DRAWS**0.5

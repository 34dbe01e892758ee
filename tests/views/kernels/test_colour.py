"""Colour operations and blur equal torchvision's functional ones, each image with its own parameters."""

import itertools
import math

import pytest
import torch
from scipy.stats import kstest  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from unlabeled.views.kernels.colour import color_jitter, equalize, luminance, shift_hue
from unlabeled.views.operations import ColorJitter, Equalize, GaussianBlur, Grayscale, Operation, Solarize

THEIRS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
IDENTITY = [1.0, 1.0, 1.0, 0.0]
ORDERS = list(itertools.permutations(range(4)))
LEVEL = 1 / 255


def images_of(count: int, size: int = 24, seed: int = 0) -> Tensor:
    """Smooth pictures with noise on them, and in the first row greys and pure colours, where hue is delicate."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images: Tensor = F.resize(coarse, [size, size]) + 0.1 * torch.randn(count, 3, size, size, generator=generator)
    images = images.clamp(0, 1)
    images[0, :, :2] = 0.5
    images[0, :, 2, :8] = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).T
    return images


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(("which", "tolerance"), [(0, LEVEL), (1, LEVEL), (2, LEVEL), (3, 2 * LEVEL)])
def test_each_operation_alone_equals_torchvision(which: int, tolerance: float) -> None:
    images = images_of(9)
    values = torch.linspace(-0.5, 0.5, 9) if which == 3 else torch.linspace(0, 1.9, 9)
    factors = torch.tensor([IDENTITY]).repeat(9, 1)
    factors[:, which] = values
    ours = color_jitter(images, factors, torch.arange(4).expand(9, 4))
    theirs = torch.stack([THEIRS[which](row, float(value)) for row, value in zip(images, values, strict=True)])
    assert difference(ours, theirs) <= tolerance
    assert difference(ours, images) > 0.1


@pytest.mark.parametrize("count", [1, 5, 100])  # few images are sorted by four operations, many by two at a time
@pytest.mark.parametrize("additive", [False, True])
def test_sorted_images_are_bit_for_bit_those_that_were_changed_one_by_one_in_their_own_order(
    count: int, additive: bool
) -> None:
    images, operation = images_of(count), ColorJitter(0.8, 0.8, 0.8, 0.2, 0.8, additive)
    drawn = operation.sample(count, torch.Generator().manual_seed(count))
    ours = operation.apply(images, drawn)
    for row, image in enumerate(images.clone()):
        for which in drawn["order"][row].tolist() if drawn["applied"][row] else []:
            only = torch.tensor([[which, 4, 4, 4]])
            image = color_jitter(image[None], drawn["factors"][row : row + 1], only, additive)[0]
        assert torch.equal(ours[row], image)


def test_jitter_in_each_of_the_24_orders_equals_torchvision_one_after_the_other() -> None:
    images, order = images_of(24), torch.tensor(ORDERS)
    factors = torch.tensor([1.5, 0.4, 1.7, 0.15]) + 0.3 * torch.rand(24, 4, generator=torch.Generator().manual_seed(1))
    factors[:, 3] -= 0.3
    theirs = []
    for row, numbers, turns in zip(images, factors.tolist(), ORDERS, strict=True):
        for which in turns:
            row = THEIRS[which](row, numbers[which])
        theirs.append(row)
    ours = color_jitter(images, factors, order)
    assert difference(ours, torch.stack(theirs)) <= 2 * LEVEL
    without_hue = factors.clone()
    without_hue[:, 3] = 0
    same = color_jitter(images[:1].expand(24, -1, -1, -1), without_hue[:1].expand(24, 4), order)
    assert difference(same[ORDERS.index((0, 1, 2, 3))], same[ORDERS.index((1, 0, 2, 3))]) > 0.01  # order matters


def test_added_brightness_in_each_of_the_24_orders_is_that_of_a_literal_loop() -> None:
    """x + δ as tf.image.random_brightness (SimCLR's data_util.py, simclrv1; BYOL), clipped after each operation."""
    images, order = images_of(24), torch.tensor(ORDERS)
    numbers = torch.tensor([0.0, 0.5, 0.8, 0.0]) + torch.rand(24, 4, generator=torch.Generator().manual_seed(1))
    shifts = torch.linspace(-0.4, 0.4, 24)
    factors = torch.cat([shifts[:, None], numbers[:, 1:3], 0.2 * numbers[:, 3:] - 0.1], 1)
    expected = []
    for row, values, turns in zip(images.double(), factors.tolist(), ORDERS, strict=True):
        for which in turns:
            row = (row + values[0]).clamp(0, 1) if which == 0 else THEIRS[which](row, values[which])
        expected.append(row)
    ours = color_jitter(images, factors, order, additive_brightness=True)
    assert difference(ours, torch.stack(expected)) <= LEVEL
    multiplied = color_jitter(images, factors + torch.tensor([1.0, 0, 0, 0]), order)
    assert difference(ours, multiplied) > 0.3


def test_added_brightness_is_uniform_on_both_sides_of_zero_and_leaves_every_other_draw_as_it_was() -> None:
    operation = ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8, additive_brightness=True)
    added = operation.sample(5000, torch.Generator().manual_seed(0))
    multiplied = ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8).sample(5000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(added["factors"][:, 0] + 1, multiplied["factors"][:, 0], rtol=0, atol=1e-6)
    assert kstest(added["factors"][:, 0].numpy(), "uniform", args=(-0.4, 0.8)).pvalue > 1e-3
    assert torch.equal(added["factors"][:, 1:], multiplied["factors"][:, 1:])
    assert torch.equal(added["order"], multiplied["order"])
    grey = torch.full((5, 3, 4, 4), 0.5)
    ours = operation.apply(grey, {name: values[:5] for name, values in added.items()})
    shifts = torch.where(added["applied"], added["factors"][:, 0], torch.zeros(5000))[:5, None, None, None]
    assert float(shifts.abs().max()) > 0.1
    torch.testing.assert_close(ours, 0.5 + shifts.expand(5, 3, 4, 4), rtol=0, atol=1e-5)  # grey has no other change


def test_factors_of_one_change_nothing_bit_for_bit_and_no_shift_of_hue_almost_nothing() -> None:
    images = images_of(24)
    factors = torch.tensor([IDENTITY]).expand(24, 4)
    only_blends = torch.tensor([[0, 1, 2, 0]]).expand(24, 4)
    assert torch.equal(color_jitter(images, factors, only_blends), images)
    assert difference(color_jitter(images, factors, torch.tensor(ORDERS)), images) < 1e-5


def test_hue_has_a_period_of_one_turn_and_leaves_grey_alone() -> None:
    images = images_of(4)
    assert difference(shift_hue(images, torch.full((4,), 0.5)), shift_hue(images, torch.full((4,), -0.5))) < 1e-4
    grey = torch.full((1, 3, 2, 2), 0.3)
    assert difference(shift_hue(grey, torch.tensor([0.2])), grey) < 1e-5


def test_luminance_is_the_grey_value_of_torchvision_and_sums_to_one() -> None:
    images = images_of(3)
    assert difference(luminance(images), F.rgb_to_grayscale(images)) <= LEVEL
    assert difference(luminance(torch.ones(1, 3, 1, 1)), torch.ones(1, 1, 1, 1)) < 1e-6
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert float(luminance(red)) == pytest.approx(0.299)


def test_grayscale_gives_equal_channels_to_the_chosen_rows_and_leaves_the_others() -> None:
    images, applied = images_of(4), torch.tensor([True, False, True, False])
    ours = Grayscale(0.5).apply(images, {"applied": applied})
    assert torch.equal(ours[~applied], images[~applied])
    assert difference(ours[applied], F.rgb_to_grayscale(images[applied], num_output_channels=3)) <= LEVEL


def test_solarize_equals_torchvision_on_every_level_and_leaves_images_that_are_not_chosen() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(3, 3, 16, 16)
    applied = torch.tensor([True, False, True])
    for threshold in (128 / 255, 0.50196078):  # the second as it stands in the yaml
        ours = Solarize(threshold, 0.2).apply(levels / 255, {"applied": applied})
        assert torch.equal((ours[applied] * 255).round().to(torch.uint8), F.solarize(levels[applied], 128))
        assert torch.equal(ours[~applied], levels[~applied] / 255)
    images = images_of(3)
    theirs = F.solarize(images, 0.3)
    assert torch.equal(Solarize(0.3, 1.0).apply(images, {"applied": torch.ones(3, dtype=torch.bool)}), theirs)


def test_a_range_of_thresholds_gives_each_image_its_own_which_is_uniform_and_used() -> None:
    operation = Solarize((0.0, 256 / 255), 1.0)
    drawn = operation.sample(5000, torch.Generator().manual_seed(0))
    assert kstest(drawn["threshold"].numpy(), "uniform", args=(0, 256 / 255)).pvalue > 1e-3
    images = images_of(3)
    ours = operation.apply(images.clone(), {name: values[:3] for name, values in drawn.items()})
    for row, image, threshold in zip(ours, images, drawn["threshold"], strict=False):
        expected = F.solarize(image, float(threshold)) if threshold <= 1 else image
        assert torch.equal(row, expected)


def test_a_fixed_threshold_draws_nothing_more_than_which_images() -> None:
    assert Solarize(0.5, 0.2).sample(4, torch.Generator()).keys() == {"applied"}


@pytest.mark.parametrize("size", [1, 4, 15, 16, 17, 32, 96])
def test_equalize_equals_torchvision_on_pictures_of_few_and_of_many_values(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    levels = torch.randint(0, 256, (6, 3, size, size), generator=generator, dtype=torch.uint8)
    levels[1] //= 64  # four values
    levels[2] = 255 * (levels[2] > 127)  # black and white
    levels[3] = 200  # one value
    levels[4, 0] = 0  # one channel of one value
    levels[5] = (levels[5].double() / 255).pow(4).mul(255).to(torch.uint8)  # dark
    ours = equalize(levels / 255)
    assert torch.equal((ours * 255).round().to(torch.uint8), F.equalize(levels))
    applied = torch.tensor([True, False, True, False, True, True])
    some = Equalize(0.5).apply(levels / 255, {"applied": applied})
    assert torch.equal(some[applied], ours[applied])
    assert torch.equal(some[~applied], (levels / 255)[~applied])


@pytest.mark.parametrize(("size", "taps"), [(224, 23), (96, 9), (32, 3), (24, 3)])
def test_blur_equals_torchvision_with_the_documented_number_of_taps_up_to_the_border(size: int, taps: int) -> None:
    images, sigma = images_of(3, size), torch.tensor([0.1, 0.7, 2.0])
    applied = torch.ones(3, dtype=torch.bool)
    ours = GaussianBlur((0.1, 2.0), 0.1, 1.0).apply(images, {"sigma": sigma, "applied": applied})
    for row, image, width in zip(ours, images, sigma.tolist(), strict=True):
        assert difference(row, F.gaussian_blur(image, [taps, taps], [width, width])) < 1e-5


@pytest.mark.parametrize(("size", "taps"), [(224, 23), (96, 9), (32, 3)])
def test_a_blurred_point_reaches_as_far_as_the_documented_number_of_taps(size: int, taps: int) -> None:
    point = torch.zeros(1, 3, size, size)
    point[:, :, size // 2, size // 2] = 1
    blur = GaussianBlur((0.1, 2.0), 0.1, 1.0)
    ours = blur.apply(point, {"sigma": torch.tensor([4.0]), "applied": torch.tensor([True])})
    assert int((ours[0, 0, size // 2] > 0).sum()) == taps
    assert float(ours.sum()) == pytest.approx(3, abs=1e-4)


@pytest.mark.parametrize("strength", [0.4, 0.8, 1.5])
def test_factors_are_uniform_between_one_minus_and_one_plus_the_strength_and_never_negative(strength: float) -> None:
    drawn = ColorJitter(strength, strength, strength, 0.2, 0.8).sample(5000, torch.Generator().manual_seed(0))
    low, high = max(0.0, 1 - strength), 1 + strength
    for column in drawn["factors"][:, :3].unbind(1):
        assert low <= float(column.min()) <= float(column.max()) <= high
        assert kstest(column.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3
    assert kstest(drawn["factors"][:, 3].numpy(), "uniform", args=(-0.2, 0.4)).pvalue > 1e-3


def test_each_of_the_24_orders_is_equally_likely() -> None:
    order = ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8).sample(24_000, torch.Generator().manual_seed(0))["order"]
    counts = torch.bincount((order * torch.tensor([64, 16, 4, 1])).sum(1), minlength=256)
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert (counts - 1000).abs().max() < 4.5 * math.sqrt(24_000 / 24 * 23 / 24)


def test_sigmas_are_uniform() -> None:
    sigma = GaussianBlur((0.1, 2.0), 0.1, 0.5).sample(5000, torch.Generator().manual_seed(0))["sigma"]
    assert kstest(sigma.numpy(), "uniform", args=(0.1, 1.9)).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.8, 1.0])
def test_the_share_of_changed_images_lies_within_four_standard_errors(probability: float) -> None:
    operations: list[Operation] = [
        ColorJitter(0.4, 0.4, 0.4, 0.1, probability),
        Grayscale(probability),
        GaussianBlur((0.1, 2.0), 0.1, probability),
        Solarize(0.5, probability),
        Equalize(probability),
    ]
    for operation in operations:
        applied = operation.sample(10_000, torch.Generator().manual_seed(0))["applied"]
        assert abs(applied.float().mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / 10_000)


@pytest.mark.parametrize("rows", [[], [1], [0, 2, 3], [0, 1, 2, 3, 4]])
def test_images_that_are_not_chosen_stay_bit_for_bit_and_chosen_ones_do_not_depend_on_the_others(
    rows: list[int],
) -> None:
    images = images_of(5, 32)
    operations: list[Operation] = [ColorJitter(0.8, 0.8, 0.8, 0.2, 1.0), GaussianBlur((0.5, 2.0), 0.2, 1.0)]
    for operation in operations:
        drawn = operation.sample(5, torch.Generator().manual_seed(0))
        everywhere = operation.apply(images, drawn)
        applied = torch.zeros(5, dtype=torch.bool)
        applied[rows] = True
        ours = operation.apply(images, drawn | {"applied": applied})
        assert torch.equal(ours[~applied], images[~applied])
        torch.testing.assert_close(ours[applied], everywhere[applied], rtol=0, atol=1e-6)

"""Crop, resize and flip equal torchvision's, and the boxes are drawn from torchvision's distribution."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp  # type: ignore[import-untyped]
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from unlabeled.views import operations
from unlabeled.views.kernels.crop import SHORT, Interpolation, crop_resize, kernel, matrix, taps, taps_of
from unlabeled.views.kernels.resample import resize_dense, resize_sparse

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def rows_of_torchvision(images: Tensor, boxes: Tensor, flip: Tensor, size: int, mode: str) -> Tensor:
    rows = []
    for image, box, mirrored in zip(images, boxes.tolist(), flip.tolist(), strict=True):
        row = F.resized_crop(image, *box, [size, size], interpolation=MODES[mode], antialias=True)
        rows.append(F.horizontal_flip(row) if mirrored else row)
    return torch.stack(rows).clamp(0, 1)


def boxes_of(height: int, width: int) -> Tensor:
    """The whole image; one box at each corner; a thin one along each axis; one pixel."""
    h, w = height // 2 + 1, width // 3 + 1
    top, left = height - h, width - w
    corners = [[0, 0, h, w], [0, left, h, w], [top, 0, h, w], [top, left, h, w]]
    return torch.tensor([[0, 0, height, width], *corners, [0, 1, height, 1], [2, 0, 1, width], [3, 2, 1, 1]])


def measures(boxes: Tensor) -> list[Tensor]:
    top, left, height, width = boxes.unbind(1)
    return [height * width, width / height, top, left]


def crop(size: int = 8, **changed: Any) -> operations.RandomResizedCrop:
    given: dict[str, Any] = {"scale": SCALE, "ratio": RATIO, "interpolation": "bilinear", "flip": 0.5}
    return operations.RandomResizedCrop(size, **(given | changed))


def boxes_drawn(operation: operations.RandomResizedCrop, count: int, height: int, width: int, seed: int = 0) -> Tensor:
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    return operation.boxes(operation.sample(count, torch.Generator().manual_seed(seed)), sizes)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (37, 50), (96, 96), (224, 224)])
@pytest.mark.parametrize("size", [7, 32, 96])
def test_crops_at_every_border_equal_torchvision_with_antialias(
    height: int, width: int, size: int, interpolation: Interpolation
) -> None:
    boxes = boxes_of(height, width)
    images = torch.rand(len(boxes), 3, height, width, generator=torch.Generator().manual_seed(0))
    flip = torch.arange(len(boxes)) % 2 == 1
    ours = crop_resize(images, boxes, flip, size, interpolation)
    assert ours.shape == (len(boxes), 3, size, size)
    torch.testing.assert_close(ours, rows_of_torchvision(images, boxes, flip, size, interpolation), rtol=0, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_random_crops_of_a_photograph_equal_torchvision(interpolation: Interpolation) -> None:
    photograph = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1).float() / 255
    height, width = photograph.shape[1:]
    images = photograph.expand(6, 3, height, width)
    boxes, flip = boxes_drawn(crop(224), 6, height, width, 1), torch.arange(6) % 2 == 0
    ours = crop_resize(images, boxes, flip, 224, interpolation)
    theirs = rows_of_torchvision(images, boxes, flip, 224, interpolation)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_both_states_of_the_flip_mirror_the_columns_and_nothing_else() -> None:
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))[:1].expand(2, 3, 20, 30)
    boxes = torch.tensor([[3, 5, 11, 17]]).expand(2, 4)
    kept, mirrored = crop_resize(images, boxes, torch.tensor([False, True]), 9, "bicubic")
    torch.testing.assert_close(mirrored, kept.flip(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_box_of_the_size_of_the_result_is_copied(interpolation: Interpolation) -> None:
    images = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    ours = crop_resize(images, torch.tensor([[4, 6, 12, 12]]), torch.tensor([False]), 12, interpolation)
    torch.testing.assert_close(ours, images[:, :, 4:16, 6:18], rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 24, 200])
def test_weights_sum_to_one_and_are_zero_outside_the_interval(size: int, interpolation: Interpolation) -> None:
    start, length = torch.tensor([0, 0, 30, 17, 63]), torch.tensor([64, 3, 34, 20, 1])
    lines = kernel(start, length, torch.zeros(5, dtype=torch.bool), size, interpolation)
    few = taps(lines)
    weights = torch.zeros(5, size, 64).scatter_add_(2, few.pixel.long(), few.weight)
    assert weights.shape == (5, size, 64)
    whole = matrix(lines, 64)
    torch.testing.assert_close(weights, whole, rtol=0, atol=2e-6)
    torch.testing.assert_close(weights.sum(2), torch.ones(5, size), rtol=0, atol=2e-6)
    pixel = torch.arange(64)
    outside = (pixel < start[:, None]) | (pixel >= (start + length)[:, None])
    assert weights.transpose(1, 2)[outside].abs().max() == 0


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [7, 24, 32, 64])
@pytest.mark.parametrize("longest", [1, 20, 33, SHORT])
def test_weights_from_a_table_are_bit_for_bit_those_computed_for_the_same_intervals(
    longest: int, size: int, interpolation: Interpolation
) -> None:
    length = torch.arange(1, longest + 1).repeat(2)
    start, flip = SHORT - length, torch.arange(2 * longest) >= longest
    read = taps_of(start, length, flip, size, interpolation, SHORT)
    computed = taps(kernel(start, length, flip, size, interpolation))
    assert torch.equal(read.pixel, computed.pixel)
    assert torch.equal(read.weight, computed.weight)
    assert read.pixel.dtype == torch.int32


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_sums_over_few_pixels_equal_the_products_with_whole_matrices(interpolation: Interpolation) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 41, 70, generator=generator)
    boxes = torch.tensor(
        [[0, 0, 41, 70], [3, 5, 1, 1], [40, 69, 1, 1], [10, 2, 25, 9], [0, 60, 41, 10], [20, 0, 4, 66]]
    )
    flip = torch.tensor([True, False, True, False, True, False])
    rows = kernel(boxes[:, 0], boxes[:, 2], torch.zeros_like(flip), 24, interpolation)
    columns = kernel(boxes[:, 1], boxes[:, 3], flip, 24, interpolation)
    summed = resize_sparse(images, taps(rows), taps(columns))  # as on a CPU
    multiplied = resize_dense(images, matrix(rows, 41), matrix(columns, 70))  # as on a GPU
    torch.testing.assert_close(summed, multiplied, rtol=0, atol=2e-6)
    torch.testing.assert_close(summed.clamp(0, 1), crop_resize(images, boxes, flip, 24, interpolation), rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (37, 50), (60, 30)])
def test_boxes_follow_the_distribution_of_torchvision(height: int, width: int) -> None:
    ours = boxes_drawn(crop(), 5000, height, width)
    blank = torch.zeros(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        drawn = [RandomResizedCrop.get_params(blank, list(SCALE), list(RATIO)) for _ in range(5000)]
    theirs = torch.tensor(drawn)
    for name, one, other in zip(("area", "ratio", "top", "left"), measures(ours), measures(theirs), strict=True):
        assert ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-3, name


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (5, 90), (224, 160)])
def test_boxes_lie_inside_the_image(height: int, width: int) -> None:
    top, left, h, w = boxes_drawn(crop(), 2000, height, width).unbind(1)
    assert min(int(top.min()), int(left.min())) >= 0
    assert min(int(h.min()), int(w.min())) >= 1
    assert int((top + h).max()) <= height
    assert int((left + w).max()) <= width


@pytest.mark.parametrize(("height", "width", "scale"), [(4, 200, 0.9), (200, 4, 0.9), (3, 10, 0.9), (40, 45, 3.0)])
def test_the_fallback_of_an_extreme_image_is_that_of_torchvision(height: int, width: int, scale: float) -> None:
    ours = boxes_drawn(crop(scale=(scale, scale)), 3, height, width)
    theirs = RandomResizedCrop.get_params(torch.zeros(3, height, width), [scale, scale], list(RATIO))
    assert ours.tolist() == [list(theirs)] * 3


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_flips_lies_within_four_standard_errors(probability: float) -> None:
    flip = crop(flip=probability).sample(10_000, torch.Generator().manual_seed(0))["flip"]
    assert abs(flip.float().mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / 10_000)

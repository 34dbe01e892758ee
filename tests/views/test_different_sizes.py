"""Images of different sizes on canvases: each is cut in its own frame, and its canvas changes nothing."""

import itertools
from pathlib import Path
from typing import get_args

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from tests.small import composed
from unlabeled.data.padding import pad_to_largest
from unlabeled.errors import UserError
from unlabeled.views.background import Fill, paint_background
from unlabeled.views.kernels.crop import Interpolation, crop_resize
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import ColorJitter, Equalize, GaussianBlur, Operation, RandomResizedCrop
from unlabeled.views.per_image import PerImageTransform
from unlabeled.views.pipeline import ViewGroup, Views

CONF = Path(__file__).parents[2] / "conf"
SIZES = [(32, 32), (40, 25), (17, 60), (1, 9), (60, 44), (33, 31)]
IDS = torch.arange(len(SIZES))
KEY = ViewKey(0, 3, 0, len(SIZES))


def pictures() -> list[Tensor]:
    """Cut-outs of scikit-learn's photographs, uint8 [3, h, w], every other pixel: structure at every scale."""
    sources = [torch.from_numpy(image.copy()).permute(2, 0, 1)[:, ::2, ::2] for image in load_sample_images().images]
    return [sources[row % 2][:, 30 : 30 + h, 90 : 90 + w].contiguous() for row, (h, w) in enumerate(SIZES)]


def on_canvas(images: list[Tensor], height: int, width: int, around: int = 0) -> tuple[Tensor, Tensor]:
    made = torch.full((len(images), 3, height, width), around, dtype=torch.uint8)
    for row, image in enumerate(images):
        made[row, :, : image.shape[1], : image.shape[2]] = image
    return made, torch.tensor([image.shape[1:] for image in images])


def one_by_one(views: Views, images: list[Tensor]) -> list[Tensor]:
    made = [views(image[None], IDS[row : row + 1], KEY._replace(first=row)) for row, image in enumerate(images)]
    return [torch.cat(rows) for rows in zip(*made, strict=True)]


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "views").glob("*.yaml")))
def test_every_pipeline_makes_of_an_image_on_a_canvas_what_it_makes_of_the_image_alone(name: str) -> None:
    config = composed(f"views={name}")
    config.views.update({key: None for key in config.views if OmegaConf.is_missing(config.views, key)})
    views: Views = instantiate(config.views)
    joined, sizes = on_canvas(pictures(), 64, 64)
    for view, alone in zip(views(joined, IDS, KEY, sizes=sizes), one_by_one(views, pictures()), strict=True):
        torch.testing.assert_close(view, alone, rtol=0, atol=1e-5)
    alone = torch.cat([views.evaluation_view(image[None]) for image in pictures()])
    torch.testing.assert_close(views.evaluation_view(joined, sizes), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_at_the_borders_of_an_image_see_nothing_of_its_canvas(interpolation: Interpolation) -> None:
    joined, sizes = on_canvas(pictures(), 64, 70, around=255)
    mode = InterpolationMode(interpolation)
    for corner in itertools.product((False, True), (False, True)):
        side = (sizes + 1) // 2
        boxes = torch.cat([(sizes - side) * torch.tensor(corner), side], 1)
        ours = crop_resize(joined / 255, boxes, torch.zeros(len(joined), dtype=torch.bool), 20, interpolation)
        for image, box, cut in zip(pictures(), boxes.tolist(), ours, strict=True):
            theirs = F.resized_crop(image / 255, *box, [20, 20], interpolation=mode, antialias=True).clamp(0, 1)
            torch.testing.assert_close(cut, theirs, rtol=0, atol=1 / 255 / 10)


def everything(*before: Operation) -> Views:
    crop = RandomResizedCrop(16, (0.08, 1.0), (0.75, 4 / 3), "bicubic", 0.5)
    return Views(16, [ViewGroup(2, [*before, crop, ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8)])], None, None, 1.0, "bicubic")


@pytest.mark.parametrize(("height", "width", "around"), [(60, 60, 77), (61, 83, 0), (128, 64, 255)])
def test_neither_the_size_of_the_canvas_nor_what_is_on_it_changes_a_bit(height: int, width: int, around: int) -> None:
    views = everything()
    joined, sizes = on_canvas(pictures(), 60, 60)
    other, _ = on_canvas(pictures(), height, width, around)
    for one, two in zip(views(joined, IDS, KEY, sizes=sizes), views(other, IDS, KEY, sizes=sizes), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(views.evaluation_view(joined, sizes), views.evaluation_view(other, sizes))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_with_canvases_of_their_own_make_the_views_of_one_process(processes: int) -> None:
    joined, sizes = pad_to_largest(pictures())
    whole = everything()(joined, IDS, KEY, sizes=sizes)
    share = len(SIZES) // processes
    parts = []
    for first in range(0, len(SIZES), share):
        joined, sizes = pad_to_largest(pictures()[first : first + share])
        ids = IDS[first : first + share]
        parts.append(everything()(joined, ids, KEY._replace(first=first), sizes=sizes))
    for number, view in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts]), view)


def test_boxes_of_images_of_different_sizes_are_those_of_each_size_alone() -> None:
    operation = RandomResizedCrop(8, (0.2, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    sizes = torch.tensor(SIZES).repeat(500, 1)
    drawn = operation.sample(len(sizes), torch.Generator().manual_seed(0))
    boxes = operation.boxes(drawn, sizes)
    for row, size in enumerate(SIZES):
        own = {name: values[row :: len(SIZES)] for name, values in drawn.items()}
        alone = operation.boxes(own, torch.tensor([size]).expand(500, 2))
        assert torch.equal(boxes[row :: len(SIZES)], alone)
    inside = (boxes[:, :2] >= 0) & (boxes[:, 2:] >= 1) & (boxes[:, :2] + boxes[:, 2:] <= sizes)
    assert bool(inside.all())


@pytest.mark.parametrize("fill", get_args(Fill))
def test_backgrounds_on_a_canvas_are_painted_as_those_of_the_image_alone(fill: Fill) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(len(SIZES), 12, 12, generator=generator) < 0.5
    grey, seed = torch.rand(len(SIZES), generator=generator), torch.arange(len(SIZES)) + 99
    joined, sizes = on_canvas(pictures(), 60, 60)
    painted = paint_background(joined / 255, masks, fill, grey, seed, sizes)
    for row, (image, (height, width)) in enumerate(zip(pictures(), SIZES, strict=True)):
        own = slice(row, row + 1)
        alone = paint_background(image[None] / 255, masks[own], fill, grey[own], seed[own])
        torch.testing.assert_close(painted[own, :, :height, :width], alone, rtol=0, atol=1e-6)
        rows, columns = ((2 * torch.arange(side) + 1) * 12 // (2 * side) for side in (height, width))  # nearest
        shape = masks[row][rows][:, columns]
        assert torch.equal((painted[row] == joined[row] / 255).all(0)[:height, :width] | ~shape, torch.ones_like(shape))


@pytest.mark.parametrize(
    "before",
    [
        ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8),
        Equalize(1.0),
        GaussianBlur((0.1, 2.0), 0.1, 0.5),
        PerImageTransform(v2.Identity()),
    ],
)
def test_what_would_count_the_canvas_in_is_refused_before_the_crop_and_welcome_for_images_of_one_size(
    before: Operation,
) -> None:
    joined, sizes = on_canvas(pictures(), 60, 60)
    name = type(before).__name__
    with pytest.raises(UserError, match=rf"{name} needs images of one size.*crop before it.*data\.square=true"):
        everything(before)(joined, IDS, KEY, sizes=sizes)
    assert len(everything(before)(joined, IDS, KEY)) == 2


def test_a_group_that_never_crops_is_refused_for_images_of_different_sizes() -> None:
    joined, sizes = on_canvas(pictures(), 60, 60)
    views = Views(16, [ViewGroup(1, [])], None, None, 1.0, "bicubic")
    with pytest.raises(UserError, match=r"images differ in size and a group has no crop.*data\.square=true"):
        views(joined, IDS, KEY, sizes=sizes)

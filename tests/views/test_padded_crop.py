"""Padded crops against torchvision's padding, and how their places are drawn."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from unlabeled.errors import UserError
from unlabeled.views.key import ViewKey
from unlabeled.views.padded_crop import RandomCrop
from unlabeled.views.pipeline import ViewGroup, Views


def images(count: int, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("fill", "mode"), [("black", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 12)])
def test_a_crop_is_that_of_torchvisions_padded_image(fill: str, mode: str, height: int, width: int) -> None:
    operation = RandomCrop(size=8, padding=4, fill=fill, flip=0.5)  # type: ignore[arg-type]
    given, drawn = images(64, height, width), operation.sample(64, torch.Generator().manual_seed(1))
    made = operation.apply(given.clone(), drawn)
    assert made.shape == (64, 3, 8, 8)
    places = torch.tensor([height + 1, width + 1])
    for image, result, where, flip in zip(given, made, drawn["where"], drawn["flip"], strict=True):
        padded = F.pad(image, [4, 4, 4, 4], padding_mode=mode)
        top, left = (where * places).long().tolist()
        expected = F.crop(padded, top, left, 8, 8)
        assert torch.equal(result, F.horizontal_flip(expected) if flip else expected)


def test_every_place_is_as_likely_and_half_of_the_images_are_mirrored() -> None:
    drawn = RandomCrop(32, 4, "black", 0.5).sample(90_000, torch.Generator().manual_seed(0))
    counts = (drawn["where"] * 9).long().flatten().bincount(minlength=9)
    assert len(counts) == 9
    assert bool(((counts / 180_000 - 1 / 9).abs() < 0.004).all())
    assert float(drawn["flip"].float().mean()) == pytest.approx(0.5, abs=0.006)


def test_without_a_border_and_with_the_size_of_the_image_nothing_changes() -> None:
    operation = RandomCrop(8, 0, "black", 0.0)
    assert torch.equal(operation.apply(images(4), operation.sample(4, torch.Generator())), images(4))


def test_a_process_makes_its_rows_of_the_views_that_one_process_makes() -> None:
    group = ViewGroup(1, [RandomCrop(8, 2, "reflect", 0.5)])
    views, given = Views(8, [group], None, None, 1.0, "bilinear"), (255 * images(6)).to(torch.uint8)
    (whole,) = views(given, torch.arange(6), ViewKey(0, 3, 0, 6))
    (part,) = views(given[4:], torch.arange(4, 6), ViewKey(0, 3, 4, 6))
    assert torch.equal(part, whole[4:])


def test_images_that_are_too_small_or_of_different_sizes_are_refused() -> None:
    cases = {
        r"^RandomCrop: size=17 of images of 8 pixels with borders of 4: give at most 16$": RandomCrop(
            17, 4, "black", 0.5
        ),
        r"^RandomCrop: padding=8 with fill=reflect: must be below 8 pixels$": RandomCrop(8, 8, "reflect", 0.5),
    }
    for message, operation in cases.items():
        with pytest.raises(UserError, match=message):
            operation.apply(images(2), operation.sample(2, torch.Generator()))
    with pytest.raises(UserError, match=r"^RandomCrop: fill=white is neither black nor reflect$"):
        RandomCrop(8, 4, "white", 0.5)  # type: ignore[arg-type]
    views = Views(8, [ViewGroup(1, [RandomCrop(8, 4, "black", 0.5)])], None, None, 1.0, "bilinear")
    with pytest.raises(UserError, match="RandomCrop needs images of one size and these differ"):
        views(
            (255 * images(2)).to(torch.uint8),
            torch.arange(2),
            ViewKey(0, 0, 0, 2),
            sizes=torch.tensor([[8, 8], [6, 8]]),
        )

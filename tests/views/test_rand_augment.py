"""RandAugment and Cutout: each operation is torchvision's on uint8 images bit for bit, drawn as torchvision does."""

import pytest
import torch
from scipy.stats import chisquare  # type: ignore[import-untyped]
from sklearn.datasets import load_sample_images
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms.v2 import functional as F

from unlabeled.errors import UserError
from unlabeled.views import rand_augment
from unlabeled.views.cutout import Cutout
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import ViewGroup, Views
from unlabeled.views.rand_augment import KINDS, NUMBERS, RandAugment

THEIRS = dict(zip(KINDS, autoaugment.RandAugment()._augmentation_space(31, (32, 32)), strict=True))
DRAWS = 40_000


@pytest.fixture(scope="module", params=[(32, 32), (31, 47), (3, 9)], ids=str)
def images(request: pytest.FixtureRequest) -> Tensor:
    """Uint8 [2, 3, H, W]."""
    photographs = torch.stack([torch.tensor(picture).permute(2, 0, 1) for picture in load_sample_images().images])
    resized: Tensor = F.resize(photographs, list(request.param), antialias=True)
    return resized


def by_torchvision(image: Tensor, name: str, magnitude: int, sign: int) -> Tensor:
    values, signed = autoaugment.RandAugment()._augmentation_space(31, (image.shape[1], image.shape[2]))[THEIRS[name]]
    value = float(values[magnitude]) if values.ndim else 0.0
    changed: Tensor = autoaugment._apply_op(
        image, THEIRS[name], value * (sign if signed else 1), InterpolationMode.NEAREST, None
    )
    return changed


@pytest.fixture(params=["kind by kind", "all at once"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "all at once":
        monkeypatch.setattr(rand_augment, "few_launches", lambda device: True)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", KINDS)
def test_each_operation_is_that_of_torchvision_on_uint8_images_bit_for_bit(name: str, images: Tensor) -> None:
    operation = RandAugment(1, None, 31)
    for magnitude in (0, 1, 9, 18, 30):
        for sign in (1, -1):
            kind = torch.full((2, 1), NUMBERS[name])
            value = operation.values(kind, torch.full((2, 1), magnitude), torch.full((2, 1), sign))
            made = operation.apply(images / 255, {"kind": kind, "value": value})
            wanted = torch.stack([by_torchvision(image, name, magnitude, sign) for image in images])
            assert torch.equal(made, wanted / 255)


@pytest.mark.usefixtures("form")
def test_each_image_gets_its_own_operations_in_turn() -> None:
    images = torch.randint(0, 256, (40, 3, 12, 12), generator=Generator().manual_seed(0), dtype=torch.uint8)
    operation, names = RandAugment(3, None, 31), list(KINDS)
    steps, signs = torch.arange(120).view(40, 3) % 31, 1 - 2 * (torch.arange(120).view(40, 3) % 2)
    kind = torch.randint(14, (40, 3), generator=Generator().manual_seed(1))
    made = operation.apply(images / 255, {"kind": kind, "value": operation.values(kind, steps, signs)})
    for image, result, own, magnitudes, sign in zip(images, made, kind, steps, signs, strict=True):
        for each in range(3):
            image = by_torchvision(image, names[int(own[each])], int(magnitudes[each]), int(sign[each]))
        assert torch.equal(result, image / 255)


def test_operations_are_drawn_alike_and_signs_and_magnitudes_where_they_are_not_given() -> None:
    drawn = RandAugment(2, None, 31).sample(DRAWS, Generator().manual_seed(0))
    for turn in (0, 1):
        assert chisquare(drawn["kind"][:, turn].bincount(minlength=14)).pvalue > 1e-3
    pairs = drawn["kind"] @ torch.tensor([14, 1])
    assert chisquare(pairs.bincount(minlength=196)).pvalue > 1e-3  # independent of each other
    turned = drawn["value"][drawn["kind"] == NUMBERS["rotate"]]
    degrees = turned.abs().round().long()
    assert chisquare(degrees.bincount(minlength=31)).pvalue > 1e-3
    assert float((turned > 0).float().sum() / (degrees > 0).sum()) == pytest.approx(0.5, abs=0.025)
    bright = RandAugment(2, 9, 31).sample(DRAWS, Generator().manual_seed(0))
    values = bright["value"][bright["kind"] == NUMBERS["brightness"]]
    assert values.abs().unique().tolist() == [float(torch.linspace(0, 0.9, 31)[9])]  # type: ignore[no-untyped-call]
    assert float((values > 0).float().mean()) == pytest.approx(0.5, abs=0.025)


def test_a_magnitude_beyond_the_bins_is_refused() -> None:
    with pytest.raises(UserError, match=r"^RandAugment: magnitude=31 must be below bins=31$"):
        RandAugment(2, 31, 31)


@pytest.mark.parametrize("size", [1, 4, 5, 40])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 14)])
def test_a_cutout_is_torchvisions_erased_square_around_its_centre(size: int, height: int, width: int) -> None:
    operation = Cutout(size, 0.25, 0.7)
    images = torch.rand(60, 3, height, width, generator=Generator().manual_seed(0))
    drawn = operation.sample(60, Generator().manual_seed(1))
    made = operation.apply(images.clone(), drawn)
    for image, result, where, applied in zip(images, made, drawn["where"], drawn["applied"], strict=True):
        row, column = int(where[0] * height), int(where[1] * width)
        top, left = max(0, row - size // 2), max(0, column - size // 2)
        below, right = min(height, row - size // 2 + size), min(width, column - size // 2 + size)
        erased = F.erase(image, top, left, below - top, right - left, torch.tensor(0.25))
        assert torch.equal(result, erased if applied else image)


def test_every_pixel_is_as_often_the_centre_of_a_cutout() -> None:
    drawn = Cutout(16, 0.0, 0.5).sample(DRAWS, Generator().manual_seed(0))
    for axis in (0, 1):
        assert chisquare((drawn["where"][:, axis] * 32).long().bincount(minlength=32)).pvalue > 1e-3
    assert float(drawn["applied"].float().mean()) == pytest.approx(0.5, abs=0.01)


def test_a_process_makes_its_rows_of_the_views_that_one_process_makes() -> None:
    group = ViewGroup(1, [RandAugment(2, None, 31), Cutout(4, 0.5, 0.8)])
    views = Views(8, [group], None, None, 1.0, "bilinear")
    given = torch.randint(0, 256, (6, 3, 8, 8), generator=Generator().manual_seed(0), dtype=torch.uint8)
    (whole,) = views(given, torch.arange(6), ViewKey(0, 3, 0, 6))
    (part,) = views(given[4:], torch.arange(4, 6), ViewKey(0, 3, 4, 6))
    assert torch.equal(part, whole[4:])
    (again,) = views(given, torch.arange(6), ViewKey(0, 4, 0, 6))
    assert not torch.equal(again, whole)

"""Crops, policies, erasing and mixing of the recipes: the published draws, and functions of a key alone."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.recipe_tasks import augmentation, colours, stripes, views
from unlabeled.data.padding import pad_to_largest
from unlabeled.errors import UserError
from unlabeled.evaluation.features import split_batches
from unlabeled.evaluation.recipes.augmentation import (
    ClampedCrop,
    Mixing,
    PILTransform,
    augmentation_policy,
    random_erase,
)
from unlabeled.objective import Batch
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import Views

CPU = torch.device("cpu")


def seen(key: ViewKey, rows: slice = slice(0, 12), name: str | None = None, erasing: float = 0.0) -> Tensor:
    images, labels = stripes(12, 0)
    own = augmentation(policy=name, erasing=erasing)
    [batch] = split_batches(images[rows], labels[rows], torch.arange(12)[rows], 12)
    return own.apply(own.views(views([0.5] * 3)), batch, key, CPU)


def test_a_clamped_crop_is_one_draw_of_area_and_ratio_cut_to_the_image() -> None:
    crop = ClampedCrop(8, (0.08, 1.0), (0.75, 4 / 3), "bicubic", 0.5)
    drawn = crop.sample(500, torch.Generator().manual_seed(0))
    sizes = torch.tensor([[30, 40]]).expand(500, 2)
    boxes = crop.boxes(drawn, sizes).tolist()
    clamped = 0
    for row, (top, left, height, width) in enumerate(boxes):
        area, ratio = float(drawn["area"][row, 0]) * 1200, float(drawn["ratio"][row, 0])
        wanted = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        assert (height, width) == (min(wanted[0], 30), min(wanted[1], 40))
        assert 0 <= top <= 30 - height
        assert 0 <= left <= 40 - width
        clamped += (height, width) != wanted
    assert clamped > 20  # torchvision would have drawn these again


def test_images_of_several_sizes_are_cropped_each_in_its_own_frame() -> None:
    images, sizes = pad_to_largest(
        [torch.full((3, 20, 30), 200, dtype=torch.uint8), torch.full((3, 40, 24), 200).byte()]
    )
    batch = Batch(images, torch.arange(2), torch.zeros(2).long(), sizes=sizes)
    for kind in ("clamped", "ten_tries"):
        own = augmentation(crop=kind, scale=(0.08, 1.0))
        made = own.apply(own.views(views()), batch, ViewKey(0, 0, 0, 2), CPU)
        torch.testing.assert_close(made, torch.full_like(made, 200 / 255))  # black canvas nowhere


@pytest.mark.parametrize("name", [None, "rand-m9-mstd0.5-inc1", "original"])
def test_views_are_a_function_of_the_key_and_the_position_in_the_batch(name: str | None) -> None:
    torch.manual_seed(1)
    whole = seen(ViewKey(0, 3, 0, 12), name=name)
    torch.manual_seed(2)
    part = seen(ViewKey(0, 3, 4, 12), slice(4, 12), name=name)
    assert torch.equal(whole[4:], part)
    assert not torch.equal(whole, seen(ViewKey(0, 4, 0, 12), name=name))


def test_a_policy_changes_images_beyond_crop_and_flip_and_rounds_to_8_bits() -> None:
    plain, changed = (seen(ViewKey(0, 0, 0, 12), name=name) for name in (None, "rand-m9-mstd0.5-inc1"))
    assert int((plain - changed).abs().flatten(1).amax(1).gt(0.1).sum()) >= 8
    levels = (changed * 0.25 + 0.5) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


def test_posterizing_to_no_bits_gives_black_images_as_it_did_before_pillow_refused_it() -> None:
    transform = augmentation_policy("rand-m10-inc1", 16, None, "bicubic")
    assert isinstance(transform, PILTransform)
    [step] = [step for step in transform.transform.ops if step.name == "PosterizeIncreasing"]  # type: ignore[attr-defined]
    step.prob = 1.0
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(PILTransform(step)(image).max()) == 0  # the strongest, 4 − 4 bits
    step.magnitude = 3
    assert set((PILTransform(step)(image) * 255).round().int().flatten().tolist()) <= set(range(0, 256, 32))  # 4 − 1


def test_erasing_puts_normal_noise_into_a_rectangle_of_a_share_of_the_images() -> None:
    images = torch.full((400, 3, 16, 16), 9.0)
    erased = random_erase(images.clone(), 0.25, seed=5)
    changed = erased != 9.0
    share = changed.flatten(1).any(1).float().mean()
    assert float(share) == pytest.approx(0.25, abs=0.065)  # three deviations of 400 draws
    for row in changed.flatten(1).any(1).nonzero().flatten().tolist():
        mask = changed[row, 0]
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        assert 0.01 <= float(mask.float().mean()) <= 0.4
    noise = erased[changed]
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(erased, random_erase(images.clone(), 0.25, seed=5))
    assert not torch.equal(erased, random_erase(images.clone(), 0.25, seed=6))


def smooth(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    return torch.eye(classes)[labels] * (1 - smoothing) + smoothing / classes


def test_mixup_blends_each_image_and_its_smoothed_label_with_its_opposite() -> None:
    images, labels = (
        torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 1, 0, 0]),
    )
    mixed, targets = Mixing(0.8, 0.0, 0.1).apply(images.clone(), labels, 3, seed=7)
    share = float(((mixed - images.flip(0)) / (images - images.flip(0)))[0].mean())
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    expected = share * smooth(labels, 3, 0.1) + (1 - share) * smooth(labels.flip(0), 3, 0.1)
    torch.testing.assert_close(targets, expected)
    again, _ = Mixing(0.8, 0.0, 0.1).apply(images.clone(), labels, 3, seed=7)
    assert torch.equal(mixed, again)


def test_cutmix_puts_in_a_rectangle_and_its_share_of_the_label() -> None:
    images, labels = colours(4, 0)
    mixed, targets = Mixing(0.0, 1.0, 0.0).apply(images.float(), labels, 3, seed=2)
    from_other = (mixed != images).any(1)
    share = 1 - float(from_other[0].float().mean())
    assert 0 < share < 1
    assert torch.equal(mixed.where(from_other[:, None], 0), images.flip(0).float().where(from_other[:, None], 0))
    expected = share * smooth(labels, 3, 0.0) + (1 - share) * smooth(labels.flip(0), 3, 0.0)
    torch.testing.assert_close(targets, expected, atol=0.02, rtol=0)  # a pixel of the rectangle may agree by chance


def test_an_odd_image_out_is_smoothed_and_not_mixed() -> None:
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2])
    mixed, targets = Mixing(0.8, 1.0, 0.1).apply(images, labels, 3, seed=0)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, smooth(labels, 3, 0.1))


def test_nothing_draws_from_the_global_random_states() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before, expected = torch.get_rng_state(), np.random.rand()
    np.random.seed(0)
    seen(ViewKey(0, 0, 0, 12), name="original", erasing=0.5)
    Mixing(0.8, 1.0, 0.1).apply(torch.rand(4, 3, 4, 4, generator=torch.Generator()), torch.zeros(4).long(), 2, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.rand() == expected


def test_what_is_not_crop_and_flip_alone_has_a_word_in_the_protocol() -> None:
    assert augmentation(scale=(0.08, 1.0)).describe() == []
    assert augmentation(flip=0.0, policy="original", erasing=0.25).describe() == [
        "scale0.5-1",
        "flip0",
        "original",
        "erasing0.25",
    ]
    assert Mixing(0.8, 0.0, 0.1).describe() == ["mixup0.8", "smoothing0.1"]


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(UserError, match=r"^probe\.x\.erasing=2: must be from 0 to 1$"):
        augmentation(erasing=2).check("probe.x")


def test_images_of_other_channels_are_cropped_and_a_policy_of_colours_is_refused() -> None:
    crop = augmentation(policy=None)
    run = Views(8, [], [0.5] * 4, [0.2] * 4, 1.0, "bilinear", channels=4)
    batch = Batch(torch.randint(256, (2, 4, 8, 8), dtype=torch.uint8), torch.arange(2), torch.zeros(2).long())
    assert crop.apply(crop.views(run), batch, ViewKey(0, 0, 0, 2), torch.device("cpu")).shape == (2, 4, 8, 8)
    with pytest.raises(UserError, match=r"augmentation\.policy=original: .* data\.channels=4: give .*policy=null"):
        augmentation(policy="original").views(run)

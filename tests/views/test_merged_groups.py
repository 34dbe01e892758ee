"""Groups whose operations differ in draws alone are made together; each view keeps its number and its draws."""

import copy

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from tests.small import composed, missing_keys
from unlabeled.views.background import RemoveBackground
from unlabeled.views.draw_ahead import draw
from unlabeled.views.key import ViewKey
from unlabeled.views.merged_groups import merge_groups
from unlabeled.views.operations import (
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Operation,
    RandomResizedCrop,
    Solarize,
)
from unlabeled.views.per_image import PerImageTransform
from unlabeled.views.pipeline import ViewGroup, Views


def crop(size: int = 24, low: float = 0.08, interpolation: str = "bicubic") -> Operation:
    return RandomResizedCrop(size, (low, 1.0), (0.75, 4 / 3), interpolation, 0.5)  # type: ignore[arg-type]


def blur(probability: float, fraction: float = 0.1) -> Operation:
    return GaussianBlur((0.1, 2.0), fraction, probability)


def views(*groups: tuple[int, list[Operation]]) -> Views:
    return Views(24, [ViewGroup(count, steps) for count, steps in groups], None, None, 1.0, "bicubic")


def numbers(made: Views) -> list[tuple[int, ...]]:
    return [group.views for group in merge_groups(made._numbered(None))]


@pytest.mark.parametrize(
    ("name", "joined"),
    [
        ("simclr", [(0, 1)]),
        ("byol", [(0, 1)]),
        ("relicv2", [(0, 1, 2, 3), (4, 5)]),
        ("relicv2_small", [(0, 1), (2, 3)]),
        ("dino", [(0, 1), tuple(range(2, 10))]),
        ("swav", [(0, 1), tuple(range(2, 8))]),
    ],
)
def test_recipes_need_one_call_for_each_size(name: str, joined: list[tuple[int, ...]]) -> None:
    config = composed(f"views={name}").views
    config.update({key: None for key in missing_keys(config)})
    assert numbers(instantiate(config)) == joined


def test_only_what_is_applied_alike_is_joined() -> None:
    foreign = PerImageTransform(torch.nn.Identity())
    for first, second in (
        ([crop(24)], [crop(16)]),
        ([crop()], [crop(interpolation="bilinear")]),
        ([crop(), foreign], [crop()]),  # it cannot leave an image as it is
        ([crop(), foreign], [crop(), PerImageTransform(torch.nn.Identity())]),
    ):
        assert numbers(views((2, first), (1, second))) == [(0, 1), (2,)]
    assert numbers(views((2, [crop(), foreign]), (1, [crop(low=0.5), foreign]))) == [(0, 1, 2)]
    for first, second, steps in (
        ([crop(), blur(1.0, 0.1)], [crop(), blur(1.0, 0.2)], 3),  # other kernels: one after the other
        ([crop(), ColorJitter(1, 1, 1, 0, 1)], [crop(), ColorJitter(1, 1, 1, 0, 1, additive_brightness=True)], 3),
        ([crop(), Solarize(0.5, 0.2), Equalize(0.1)], [crop(), Equalize(0.2), Solarize(0.5, 1)], 4),
        ([crop(), Solarize(0.5, 0.2)], [crop(), Solarize(0.7, 0.2)], 3),
        ([crop(), Solarize((0.1, 0.5), 0.2)], [crop(low=0.9), Solarize((0.1, 0.5), 0.9)], 2),
    ):
        (group,) = merge_groups(views((2, first), (1, second))._numbered(None))
        assert len(group.operations) == steps


def test_each_view_of_a_joined_group_has_the_draws_of_its_own_operations_and_no_others() -> None:
    first, second = [crop(), Grayscale(0.2), blur(1.0)], [crop(low=0.5), blur(0.1), Solarize((0.1, 0.9), 0.5)]
    made, key = views((2, first), (1, second)), ViewKey(7, 3, 4, 16)
    (group,) = merge_groups(made._numbered(None))
    (found,) = draw([group], key, 8, False).parameters(torch.device("cpu"))
    for view, own in enumerate((first, first, second)):
        generator, drawn = key.generator(view), list[dict[str, Tensor]]()
        for step in own:
            drawn.append({name: value[4:12] for name, value in step.sample(16, generator).items()})
        mine = [{name: value[view::3] for name, value in each.items()} for each in found]
        kept = [each for each, step in zip(mine, group.drawn_by[view], strict=True) if step is not None]
        for one, other in zip(kept, drawn, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
        left_out = [each for each, step in zip(mine, group.drawn_by[view], strict=True) if step is None]
        assert len(left_out) == len(group.operations) - len(own)
        assert not any(bool(each["applied"].any()) for each in left_out)


@pytest.mark.parametrize(
    "operation",
    [ColorJitter(1, 1, 1, 0.5, 1), Grayscale(1), Solarize((0, 1), 1), Equalize(1), blur(1.0)],
    ids=lambda each: type(each).__name__,
)
def test_an_operation_that_a_view_lacks_leaves_its_images_as_they_are(operation: Operation) -> None:
    images = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    drawn = operation.sample(3, torch.Generator().manual_seed(0))
    nothing = {name: torch.zeros_like(value) for name, value in drawn.items()}
    assert getattr(operation, "to_some", False)
    assert torch.equal(operation.apply(images.clone(), nothing), images)
    assert not torch.equal(operation.apply(images.clone(), drawn), images)
    assert RemoveBackground.to_some
    assert not hasattr(RandomResizedCrop, "to_some")


def test_a_copy_begins_with_nothing_joined_and_groups_are_joined_once() -> None:
    made = views((2, [crop()]), (1, [crop(low=0.5)]))
    groups = made._numbered(None)
    joined = made._at_once.merged(groups)
    assert made._at_once.merged(made._numbered(None)) is joined
    assert copy.deepcopy(made)._at_once._joined == {}

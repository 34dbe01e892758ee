"""The slow pipeline of torchvision and PIL is what it says, so that a run with it may be held against the engine's."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tests.views.reference import TorchvisionViews
from unlabeled.commands.config import check_keys
from unlabeled.errors import UserError
from unlabeled.views.background import RemoveBackground
from unlabeled.views.kernels.crop import Interpolation
from unlabeled.views.key import ViewKey
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

CONF = Path(__file__).parents[2] / "conf"
BATCHES = 12  # of 120 photographs and 240 views
ERRORS = 4.0  # standard errors that chance explains: one number in 16,000 lies further off
ROUNDING = 0.5 / 255  # Pillow rounds a resized image twice: brighter by 0.15 / 255 on average, measured here
REFERENCE = "views._target_=tests.views.reference.TorchvisionViews"


def photographs() -> Tensor:
    """Uint8 [120, 3, 32, 32]: scikit-learn's two photographs at half their size, cut into squares."""
    whole = torch.stack([torch.tensor(picture).permute(2, 0, 1) for picture in load_sample_images().images])
    half: Tensor = F.resize(whole, [213, 320], antialias=True)
    return half.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)


def crop(low: float = 0.08, high: float = 1.0, flip: float = 0.5) -> Operation:
    return RandomResizedCrop(24, (low, high), (0.75, 4 / 3), "bicubic", flip)


def whole(interpolation: Interpolation = "bilinear", size: int = 24) -> Operation:
    """The image itself, resized."""
    return RandomResizedCrop(size, (1.0, 1.0), (1.0, 1.0), interpolation, 0.0)


def jitter(
    brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.1, probability: float = 0.8
) -> Operation:
    return ColorJitter(brightness, contrast, saturation, hue, probability)


def blur(fraction: float = 0.2, widest: float = 2.0, probability: float = 0.5) -> Operation:
    return GaussianBlur((0.1, widest), fraction, probability)


def solarize(level: int = 128, probability: float = 0.2) -> Operation:
    return Solarize(level / 255, probability)


def everything() -> list[Operation]:
    return [crop(), jitter(), Grayscale(0.2), blur(), solarize()]


def pipeline(kind: type[Views], steps: list[Operation]) -> Views:
    return kind(24, [ViewGroup(2, steps)], None, None, 1.0, "bilinear")


def drawn(kind: type[Views], steps: list[Operation], images: Tensor) -> Tensor:
    """Both views [N, 3, 24, 24] of some batches, in an order that is the same for every pipeline."""
    views, count = pipeline(kind, steps), len(images)
    keys = [ViewKey(0, step, 0, count) for step in range(BATCHES)]
    return torch.cat([view for key in keys for view in views(images, torch.arange(count), key)])


def measures(views: Tensor) -> dict[str, Tensor]:
    """Numbers [N] that tell views apart."""
    colours = ("red", "green", "blue")
    found = {f"mean of {name}": views[:, channel].mean((1, 2)) for channel, name in enumerate(colours)}
    found |= {f"deviation of {name}": views[:, channel].std((1, 2)) for channel, name in enumerate(colours)}
    found["colourfulness"] = (views.amax(1) - views.amin(1)).mean((1, 2))
    found["fineness"] = views.diff(dim=3).abs().mean((1, 2, 3)) / (views.std((1, 2, 3)) + 0.02)
    found["slope"] = views[..., 12:].mean((1, 2, 3)) - views[..., :12].mean((1, 2, 3))
    return found


def errors(one: dict[str, Tensor], other: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """The largest difference of a measure's mean, or of its mean distance from the image's own, in standard errors.

    What rounding explains is taken off first.
    Paired: row by row, ``one`` and ``other`` are of views of the same image, which without any operation has ``plain``.
    """
    found = []
    for a, b, own in zip(one.values(), other.values(), plain.values(), strict=True):
        for difference in (a - b, (a - own).abs() - (b - own).abs()):
            error = difference.std() / len(own) ** 0.5
            found.append(float((difference.mean().abs() - ROUNDING).clamp(min=0) / error.clamp(min=1e-9)))
    return max(found)


# operations, and neighbours of theirs that 2,880 views must tell from them
CASES: dict[str, tuple[list[Operation], list[list[Operation]]]] = {
    "crop": ([crop()], [[crop(low=0.4)], [crop(high=0.5)], [crop(flip=0.3)]]),
    "jitter": (
        [whole(), jitter()],
        [
            [whole(), jitter(brightness=0.6)],
            [whole(), jitter(contrast=0.9)],
            [whole(), jitter(saturation=0.9)],
            [whole(), jitter(hue=0.3)],
            [whole(), jitter(probability=0.5)],
        ],
    ),
    "grayscale": ([whole(), Grayscale(0.2)], [[whole(), Grayscale(0.35)]]),
    "blur": (
        [whole(), blur()],
        [[whole(), blur(fraction=0.05)], [whole(), blur(widest=1.0)], [whole(), blur(probability=0.2)]],
    ),
    "solarize": ([whole(), solarize()], [[whole(), solarize(level=80)], [whole(), solarize(probability=0.1)]]),
    "everything": (everything(), [everything()[:-1], [crop(), jitter(), blur(), solarize()]]),
}


@pytest.mark.parametrize("case", CASES)
def test_its_views_are_distributed_as_the_engines_and_those_of_neighbouring_settings_are_not(case: str) -> None:
    steps, neighbours = CASES[case]
    images = photographs()
    plain = {
        name: own.repeat(2 * BATCHES) for name, own in measures(pipeline(Views, []).evaluation_view(images)).items()
    }
    reference = measures(drawn(TorchvisionViews, steps, images))
    assert errors(measures(drawn(Views, steps, images)), reference, plain) < ERRORS
    for neighbour in neighbours:
        assert errors(measures(drawn(Views, neighbour, images)), reference, plain) > ERRORS


@pytest.mark.parametrize("kind", [Views, TorchvisionViews])
def test_both_make_the_configured_shares_of_mirrored_and_of_grey_views(kind: type[Views]) -> None:
    ramp = torch.arange(0, 256, 8).to(torch.uint8).expand(120, 32, 32)
    orange = torch.stack([ramp, ramp // 2, ramp // 8], 1)
    seen = measures(drawn(kind, [crop(flip=0.3), jitter(hue=0.0), Grayscale(0.2)], orange))
    for drawn_so, share in ((seen["slope"] < 0, 0.3), (seen["colourfulness"] < 1 / 255, 0.2)):
        error = (share * (1 - share) / len(drawn_so)) ** 0.5
        assert abs(float(drawn_so.float().mean()) - share) < ERRORS * error


FIXED: dict[str, list[Operation]] = {
    "resized": [whole()],
    "mirrored": [RandomResizedCrop(24, (1.0, 1.0), (1.0, 1.0), "bilinear", 1.0)],
    "grey": [whole(), Grayscale(1.0)],
    "blurred": [whole(), GaussianBlur((1.0, 1.0), 0.2, 1.0)],
    "solarized": [whole(), solarize(probability=1.0)],
}


@pytest.mark.parametrize("steps", FIXED.values(), ids=FIXED)
def test_where_nothing_is_left_to_chance_its_views_are_the_engines_within_two_levels(steps: list[Operation]) -> None:
    images, ids, key = photographs(), torch.arange(120), ViewKey(0, 0, 0, 120)
    ours, reference = (pipeline(kind, steps)(images, ids, key)[0] for kind in (Views, TorchvisionViews))
    assert float((ours - reference).abs().max()) < 2.01 / 255


@pytest.mark.parametrize(("mode", "size"), [("bilinear", 24), ("bicubic", 32)])
def test_with_settings_that_change_nothing_its_views_are_what_evaluation_sees(mode: Interpolation, size: int) -> None:
    nothing = [whole(mode, size), jitter(0.0, 0.0, 0.0, 0.0), Grayscale(0.0), blur(probability=0.0), solarize(255, 0.0)]
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    views, images = TorchvisionViews(size, [ViewGroup(2, nothing)], mean, std, 1.0, mode), photographs()
    for view in views(images, torch.arange(120), ViewKey(0, 0, 0, 120)):
        assert float((views.to_pixels(view) - views.to_pixels(views.evaluation_view(images))).abs().max()) < 1.01 / 255
        torch.testing.assert_close(
            view.mean((0, 2, 3)), views.evaluation_view(images).mean((0, 2, 3)), rtol=0, atol=0.005
        )


def made(rows: slice, key: ViewKey) -> Tensor:
    """Both views [2, b, 3, 24, 24] of these rows of a global batch of 12."""
    images, ids = photographs()[:12][rows], torch.arange(12)[rows]
    return torch.stack(pipeline(TorchvisionViews, everything())(images, ids, key))


@pytest.mark.parametrize("processes", [2, 3, 12])
def test_several_processes_make_the_views_of_one_bit_for_bit_whatever_each_has_drawn_before(processes: int) -> None:
    share = 12 // processes
    with torch.random.fork_rng(devices=[]):
        parts = []
        for first in range(0, 12, share):
            torch.manual_seed(first)
            parts.append(made(slice(first, first + share), ViewKey(0, 5, first, 12)))
    assert torch.equal(torch.cat(parts, 1), made(slice(12), ViewKey(0, 5, 0, 12)))


def test_seeds_steps_views_and_places_draw_for_themselves_and_the_global_random_state_is_put_back() -> None:
    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = state()
    one, same = photographs()[:1], ViewKey(0, 0, 0, 12)
    views = pipeline(TorchvisionViews, [crop(), jitter()])
    keys = [same, *(same._replace(**{name: 1}) for name in ("seed", "step", "first"))]
    drawn_so = [view for key in keys for view in views(one, torch.arange(1), key)]
    assert len({view.numpy().tobytes() for view in drawn_so}) == 8
    assert torch.equal(views(one, torch.arange(1), same, first=1)[0], drawn_so[0])
    assert state() == before


REFUSED: dict[str, list[Operation]] = {
    "ColorJitter": [crop(), ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8, additive_brightness=True)],
    "Solarize": [crop(), Solarize((0.2, 0.8), 0.5)],
    "Equalize": [crop(), Equalize(0.5)],
    "GaussianBlur": [blur(), crop()],  # how wide a kernel, torchvision is told beforehand
    "RemoveBackground": [RemoveBackground(None, 0.1, "black", 0.1, 0.9), crop()],
    "PerImageTransform": [crop(), PerImageTransform(lambda image: image)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torchvision_does_not_have_costs_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} as configured is none of torchvision's \\(allowed: RandomResizedCrop"):
        drawn(TorchvisionViews, REFUSED[name], photographs()[:1])


def test_images_that_do_not_fill_their_tensor_cost_one_line() -> None:
    views, images, key = pipeline(TorchvisionViews, everything()), photographs()[:2], ViewKey(0, 0, 0, 2)
    whole_images, padded = torch.tensor([[32, 32], [32, 32]]), torch.tensor([[32, 32], [32, 30]])
    with_sizes = views(images, torch.arange(2), key, sizes=whole_images)
    assert torch.equal(with_sizes[0], views(images, torch.arange(2), key)[0])
    with pytest.raises(UserError, match="images of one size alone"):
        views(images, torch.arange(2), key, sizes=padded)


def test_one_override_of_the_cpu_recipe_puts_it_in_the_engines_place() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["experiment=cifar10_cpu", "name=x", "data.path=x", REFERENCE])
    check_keys(config, CONF / "train.yaml")
    views = instantiate(config.views)
    assert type(views) is TorchvisionViews
    images = photographs()[:3]
    assert [tuple(view.shape) for view in views(images, torch.arange(3), ViewKey(0, 0, 0, 3))] == [(3, 3, 24, 24)] * 2

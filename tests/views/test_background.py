"""The background goes in one image of ten, by the mask of its id, alike on any number of processes."""

import math
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from unlabeled.data.sources.digits import digits
from unlabeled.errors import UserError
from unlabeled.views.background import Fill, RemoveBackground, paint_background, seeded_normal
from unlabeled.views.kernels.colour import luminance
from unlabeled.views.key import ViewKey
from unlabeled.views.masks import Masks, pack, samples_hash
from unlabeled.views.operations import Operation, RandomResizedCrop, Solarize
from unlabeled.views.pipeline import ViewGroup, Views

ROOT = Path(__file__).parents[2]
SIZE = 8


def write_masks(path: Path, masks: Tensor, samples: str = "") -> str:
    """Bool [N, S, S] as a file; returns its name."""
    Masks(pack(masks), masks.float().mean((1, 2)), masks.shape[1], samples, [], "some data", {}).save(path)
    return str(path)


def random_masks(count: int, size: int = SIZE, share: float = 0.5) -> Tensor:
    return torch.rand((count, size, size), generator=torch.Generator().manual_seed(2)) < share


def uint8_images(count: int, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def pipeline(masks: str | None, probability: float, fill: Fill = "random_gray", *after: Operation) -> Views:
    """One view of the whole image."""
    removal = RemoveBackground(masks, probability, fill, 0.05, 0.95)
    return Views(SIZE, [ViewGroup(1, [removal, *after])], None, None, 1.0, "bilinear", masks)


def key(step: int, first: int, total: int) -> ViewKey:
    return ViewKey(seed=0, step=step, first=first, total=total)


def changed(view: Tensor, images: Tensor) -> Tensor:
    return (view != images.float() / 255).flatten(1).any(1)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ("black", lambda images, grey: torch.zeros(4, 1, 1, 1)),
        ("mean_gray", lambda images, grey: luminance(images).mean((1, 2, 3)).view(4, 1, 1, 1)),
        ("random_gray", lambda images, grey: grey.view(4, 1, 1, 1)),
    ],
)
def test_the_foreground_stays_and_the_rest_is_one_grey_value_per_image(fill: Fill, expected: object) -> None:
    images, masks = uint8_images(4).float() / 255, random_masks(4)
    grey, seed = torch.tensor([0.1, 0.4, 0.7, 1.0]), torch.arange(4)
    painted = paint_background(images, masks, fill, grey, seed)
    m = masks[:, None].float()
    c = expected(images, grey)  # type: ignore[operator]
    torch.testing.assert_close(painted, m * images + (1 - m) * c, rtol=0, atol=1e-6)


def test_noise_has_mean_one_half_and_deviation_one_quarter_in_each_channel_by_itself() -> None:
    images, nothing = torch.zeros(4, 3, 64, 64), torch.zeros(4, 1, 1, dtype=torch.bool)
    noise = paint_background(images, nothing, "gaussian_noise", torch.zeros(4), torch.arange(4)).flatten(2)
    torch.testing.assert_close(noise.mean(2), torch.full((4, 3), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(noise.std(2), torch.full((4, 3), 0.245), rtol=0, atol=0.02)  # 0.25, a little clamped
    correlation = torch.corrcoef(noise.flatten(0, 1)) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / 64


def test_the_noise_is_box_and_mullers_of_the_published_splitmix64() -> None:
    def splitmix64(state: int) -> int:
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def literal(seed: int, place: int) -> float:
        bits = splitmix64((seed + (place + 1) * 0x9E3779B97F4A7C15) % 2**64)
        radius, angle = ((bits >> 40) + 1) / 2**24, (bits >> 8) % 2**24 / 2**24
        return math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)

    assert splitmix64(1234567 + 0x9E3779B97F4A7C15) == 6457827717110365317  # the reference's first number of this seed
    seeds = [0, 1234567, 2**62 - 1]
    expected = torch.tensor([[literal(seed, place) for place in range(50)] for seed in seeds])
    torch.testing.assert_close(seeded_normal(torch.tensor(seeds), torch.arange(50)), expected, rtol=0, atol=1e-5)


def test_a_mask_of_another_size_is_resized_to_the_nearest_pixel() -> None:
    mask = torch.tensor([[[True, False], [False, True]]])
    painted = paint_background(torch.ones(1, 3, 4, 6), mask, "black", torch.zeros(1), torch.zeros(1).long())
    expected = mask.repeat_interleave(2, 1).repeat_interleave(3, 2).float()
    assert torch.equal(painted[0, 0], expected[0])


def test_an_image_is_cut_out_by_the_mask_of_its_id_and_not_of_its_place(tmp_path: Path) -> None:
    masks = random_masks(20)
    views = pipeline(write_masks(tmp_path / "m.pt", masks), 1.0, "black")
    images, ids = uint8_images(3), torch.tensor([17, 4, 9])
    (view,) = views(images, ids, key(0, 0, 3))
    assert torch.equal(view, images.float() / 255 * masks[ids][:, None])


@pytest.mark.parametrize("probability", [0.1, 0.6])
def test_the_stated_share_of_images_is_changed_and_each_view_draws_for_itself(
    tmp_path: Path, probability: float
) -> None:
    count = 4000
    masks = write_masks(tmp_path / "m.pt", random_masks(count))
    removal = RemoveBackground(masks, probability, "random_gray", 0.05, 0.95)
    views = Views(SIZE, [ViewGroup(2, [removal])], None, None, 1.0, "bilinear", masks)
    images = uint8_images(count)
    a, b = (changed(view, images) for view in views(images, torch.arange(count), key(0, 0, count)))
    spread = 4 * math.sqrt(probability * (1 - probability) * count)
    for hit in (a, b):
        assert abs(int(hit.sum()) - probability * count) < spread
    assert abs(int((a & b).sum()) - probability**2 * count) < spread


def test_grey_levels_are_uniform_and_differ_between_images_and_steps(tmp_path: Path) -> None:
    count = 500
    views = pipeline(write_masks(tmp_path / "m.pt", random_masks(count, share=0.5)), 1.0)
    images, ids = torch.full((count, 3, SIZE, SIZE), 255, dtype=torch.uint8), torch.arange(count)
    first, second = (views(images, ids, key(step, 0, count))[0].flatten(1).amin(1) for step in (0, 1))
    values = first.sort().values
    uniform = (torch.arange(count) + 0.5) / count
    assert float((values - uniform).abs().max()) < 1.63 / math.sqrt(count)  # Kolmogorov and Smirnov, one in a hundred
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.2


def test_masks_of_nearly_nothing_or_nearly_everything_leave_the_image_alone(tmp_path: Path) -> None:
    masks = torch.zeros(5, 10, 10, dtype=torch.bool)
    for row, pixels in enumerate([0, 4, 50, 96, 100]):
        masks[row].view(-1)[:pixels] = True
    images = uint8_images(5)
    (view,) = pipeline(write_masks(tmp_path / "m.pt", masks), 1.0, "black")(images, torch.arange(5), key(0, 0, 5))
    assert changed(view, images).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("fill", ["black", "mean_gray", "random_gray", "gaussian_noise"])
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_views_of_one_bit_for_bit(tmp_path: Path, fill: Fill, processes: int) -> None:
    masks = write_masks(tmp_path / "m.pt", random_masks(30))
    crop = RandomResizedCrop(SIZE, (0.3, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    images, ids = uint8_images(12), torch.randperm(30, generator=torch.Generator().manual_seed(1))[:12]
    whole = pipeline(masks, 0.5, fill, crop)(images, ids, key(3, 0, 12))[0]
    share = 12 // processes
    parts = [
        pipeline(masks, 0.5, fill, crop)(images[rows], ids[rows], key(3, rows.start, 12))[0]
        for rows in (slice(first, first + share) for first in range(0, 12, share))
    ]
    assert torch.equal(torch.cat(parts), whole)
    untouched = pipeline(None, 0.5, fill, crop)(images, ids, key(3, 0, 12))[0]
    assert 0 < int((whole != untouched).flatten(1).any(1).sum()) < 12  # the crops are those without masks


def test_a_resumed_run_sees_the_same_backgrounds_and_the_next_step_others(tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "m.pt", random_masks(12))
    images, ids = uint8_images(12), torch.arange(12)
    running, resumed = pipeline(masks, 0.5, "gaussian_noise"), pipeline(masks, 0.5, "gaussian_noise")
    made = [running(images, ids, key(step, 0, 12))[0] for step in range(3)]
    assert torch.equal(resumed(images, ids, key(2, 0, 12))[0], made[2])
    assert not torch.equal(made[1], made[2])


def composed(name: str, *overrides: str) -> Views:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        views: Views = instantiate(compose("train", [f"views={name}", "name=x", *overrides]).views)
    return views


@pytest.mark.parametrize(
    ("name", "large", "sizes"),
    [
        ("relicv2", 4, [224] * 4 + [96] * 2),
        ("relicv2_small", 2, [32] * 2 + [16] * 2),
    ],
)
def test_of_relicv2s_views_only_the_large_ones_lose_their_background(
    tmp_path: Path, name: str, large: int, sizes: Sequence[int]
) -> None:
    masks = write_masks(tmp_path / "m.pt", random_masks(6, share=0.3))
    with_masks, without = composed(name, f"views.masks={masks}"), composed(name, "views.masks=null")
    groups = [group for group in with_masks.groups for _ in range(group.count)]
    firsts = [group.operations[0] for group in groups]
    removals = [first for first in firsts if isinstance(first, RemoveBackground)]
    assert firsts[:large] == removals
    assert [removal.probability for removal in removals] == [0.1] * large
    solarized = [any(isinstance(step, Solarize) for step in group.operations) for group in groups]
    assert solarized == [False, True] * (len(sizes) // 2)
    for removal in removals:
        removal.probability = 1.0
    images, ids = uint8_images(6, 32), torch.arange(6)
    cut, whole = (views(images, ids, key(0, 0, 6)) for views in (with_masks, without))
    assert [view.shape[-1] for view in cut] == sizes
    differ = [(a != b).flatten(1).any(1) for a, b in zip(cut, whole, strict=True)]
    assert all(bool(each.all()) for each in differ[:large])
    assert not any(bool(each.any()) for each in differ[large:])


def test_evaluation_needs_no_file_and_training_says_which_is_missing(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pt")
    views, images = pipeline(missing, 1.0), uint8_images(2)
    torch.testing.assert_close(views.evaluation_view(images), images.float() / 255, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"none\.pt: no such file"):
        views(images, torch.arange(2), key(0, 0, 2))


def test_views_and_their_operations_name_one_file_or_none() -> None:
    removal = RemoveBackground("a.pt", 0.1, "black", 0.05, 0.95)
    for groups, masks in (([ViewGroup(1, [removal])], None), ([ViewGroup(1, [removal])], "b.pt"), ([], "a.pt")):
        with pytest.raises(UserError, match=r"RemoveBackground in views\.groups must read it"):
            Views(SIZE, groups, None, None, 1.0, "bilinear", masks)
    with pytest.raises(UserError, match=r"min_coverage=0\.9"):
        RemoveBackground(None, 0.1, "black", 0.9, 0.1)


def test_a_run_refuses_missing_or_foreign_masks_in_one_line_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"reading this would be another error")
    write_masks(tmp_path / "foreign.pt", random_masks(1347), samples_hash(digits().train))
    monkeypatch.chdir(tmp_path)
    for name, words in (("missing.pt", "no such file"), ("foreign.pt", "made for other data (some data)")):
        overrides = ("data=folder", "data.path=photos", "batch_size=2", "views=relicv2_small", f"views.masks={name}")
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides, "name=x", "trainer.accelerator=cpu"])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        assert stopped.value.code == 2
        line = capfd.readouterr().err.strip()
        assert f"views.masks={name}" in line
        assert words in line
        assert "unlabeled saliency" in line
        assert "\n" not in line

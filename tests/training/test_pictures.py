"""Pictures during training: where they lie, what they show, and that training does not notice them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.ImageColor import getrgb
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from tests.small import small_objective, small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.evaluation.features import state_hash
from unlabeled.objective import Batch
from unlabeled.objectives.swav import SwAV
from unlabeled.pages.draw import CAPTION, GAP, TITLE, draw_columns, shrink_images
from unlabeled.pages.feature_map import THUMBNAIL, draw_map, principal_plane
from unlabeled.pages.palette import PALETTE
from unlabeled.training.pictures import Pictures, log_picture, nearest_images
from unlabeled.training.run import Run

CPU = torch.device("cpu")


def make_run(
    name: str, folder: Path, every: int | None = 2, *overrides: str, meddling: pl.Callback | None = None
) -> Run:
    """At most 8 steps of an epoch of 3, with pictures every so many epochs, none at all for 0."""
    data = ["data=digits", "data.image_size=8", "batch_size=400", "num_workers=0", "max_steps=8"]
    config = small_run(name, folder, *data, *overrides)
    config.backbone.update({} if name == "mae" else {"width": 0.25})
    if every != 0:
        config.pictures = {
            "_target_": "unlabeled.training.pictures.Pictures",
            "every_n_epochs": every,
            "images": 5,
            "pool": 60,
        }
    resolved = open_run(config)
    run = build_run(config, resolved)
    if meddling is not None:
        run.trainer.callbacks.insert(0, meddling)  # type: ignore[attr-defined]
    run.fit(resolved)
    return run


class FirstViews(pl.Callback):
    """Notes the views that the first step has."""

    def __init__(self) -> None:
        self.views: tuple[Tensor, ...] = ()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        if not self.views:
            self.views = module.views_of(batch, module.view_key(batch))


def test_they_are_written_at_the_start_after_every_nth_epoch_and_after_the_last_step(tmp_path: Path) -> None:
    run = make_run("mae", tmp_path)
    names = [f"{name}-step-{step:08d}.png" for name in ("feature_map", "reconstructions") for step in (6, 8)]
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == [*names, "views-step-00000000.png"]
    files = [tmp_path / "pictures" / name for name in names[2:]]
    columns = Pictures(1, 5, 60).reconstructions(run.module, run.data, CPU)
    assert list(columns) == ["seen", "reconstructed", "original"]
    assert all(column.shape == (5, 3, 8, 8) for column in columns.values())
    assert torch.equal(pil_to_tensor(Image.open(files[1])), pil_to_tensor(draw_columns(columns)))
    originals = pil_to_tensor(Image.open(files[0]))[:, :, 2 * (128 + GAP) :]  # the same images each time
    assert torch.equal(originals[:, TITLE:], pil_to_tensor(Image.open(files[1]))[:, TITLE:, 2 * (128 + GAP) :])


def test_the_views_are_those_that_the_first_step_has_and_nothing_else_is_made_where_only_they_are_wanted(
    tmp_path: Path,
) -> None:
    seen = FirstViews()
    run = make_run("swav", tmp_path, None, "max_steps=1", meddling=seen)
    (file,) = (tmp_path / "pictures").iterdir()
    pixels = [run.module.views.to_pixels(view[:5]) for view in seen.views]  # two of 8 pixels, two of 4
    enlarged = [F.interpolate(view, (8, 8), mode="nearest-exact") for view in pixels]
    shown = pil_to_tensor(Image.open(file))[:, TITLE:]
    expected = pil_to_tensor(draw_columns({str(number): view for number, view in enumerate(enlarged)}))[:, TITLE:]
    assert torch.equal(shown[:, :, 128 + GAP :], expected)  # behind the column of images


@pytest.mark.parametrize("name", ["mae", "moco_v2", "swav"])
def test_a_run_with_them_ends_bit_for_bit_where_a_run_without_them_does(tmp_path: Path, name: str) -> None:
    watched = make_run(name, tmp_path / "watched", 1, "logger=[csv,tensorboard]")
    alone = make_run(name, tmp_path / "alone", 0)
    assert state_hash(watched.module) == state_hash(alone.module)  # weights, statistics, teacher, queue, prototypes
    assert (tmp_path / "watched" / "metrics.jsonl").read_text() == (tmp_path / "alone" / "metrics.jsonl").read_text()
    assert not (tmp_path / "alone" / "pictures").exists()


def test_making_them_leaves_weights_modes_and_random_state_as_they_were(tmp_path: Path) -> None:
    run = make_run("swav", tmp_path, 0)
    run.module.train()
    before, state = state_hash(run.module), torch.get_rng_state()
    callback = Pictures(1, 3, 20)
    run.trainer.strategy.model = run.module
    callback.on_train_batch_end(run.trainer, run.module, None, None, 0)
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert state_hash(run.module) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in run.module.modules())


def test_a_picture_holds_each_image_enlarged_in_its_row_and_column_right_of_its_caption() -> None:
    columns = {
        name: torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("ab")
    }
    picture = pil_to_tensor(draw_columns(columns, ["first", "second"]))
    side = 3 * 48  # the first multiple of 48 that is not below 128
    assert picture.shape == (3, TITLE + 2 * (side + GAP), CAPTION + 2 * (side + GAP))
    for number, column in enumerate(columns.values()):
        for row, image in enumerate(column):
            top, left = TITLE + row * (side + GAP), CAPTION + number * (side + GAP)
            tile = picture[:, top : top + side, left : left + side]
            for offset in range(3):
                assert torch.equal(tile[:, offset::3, offset::3], (image * 255).round().byte())
            assert int((picture[:, top : top + side, :CAPTION] < 255).sum()) > 0  # its caption
    assert int((picture[:, :TITLE] < 255).sum()) > 0  # the titles
    assert pil_to_tensor(draw_columns(columns)).shape[2] == 2 * (side + GAP)


def test_the_map_is_the_principal_plane_of_unit_rows_and_has_one_sign() -> None:
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    position, shares = principal_plane(x)
    rows = F.normalize(x)
    _, values, directions = torch.linalg.svd(rows - rows.mean(0))
    expected = (rows - rows.mean(0)) @ directions[:2].T
    torch.testing.assert_close(position.abs(), expected.abs())
    torch.testing.assert_close(shares, values[:2] ** 2 / (values**2).sum())
    assert bool((position.amax(0) == position.abs().amax(0)).all())
    torch.testing.assert_close(principal_plane(x.flip(1) * 3.0)[0], position)  # nor do axes and lengths matter
    for collapsed in (torch.ones(30, 7), torch.ones(1, 7)):
        assert [float(each.abs().sum()) for each in principal_plane(collapsed)] == [0.0, 0.0]


def test_the_map_has_each_image_at_its_place_framed_in_the_colour_of_its_class() -> None:
    angles = torch.tensor([0.0, 0.5, -0.5])
    x = torch.stack([angles.cos(), angles.sin()], 1)
    pixels = torch.tensor([10, 120, 240], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 12, 12)
    picture = pil_to_tensor(draw_map(pixels, x, torch.tensor([0, 1, -1]), ["a", "b"]))
    picture = picture[:, 26:-24]  # without title and legend
    flat = picture.flatten(1)
    for value in (10, 120, 240):  # 12 pixels are enlarged three times
        assert int((flat == value).all(0).sum()) == THUMBNAIL**2
    across = [float((picture == value).all(0).nonzero()[:, 1].float().mean()) for value in (120, 10, 240)]
    assert across[0] - across[1] == pytest.approx(across[1] - across[2], abs=1)
    for colour in PALETTE[:2]:  # the third image has no class
        framed = (picture == torch.tensor(getrgb(colour))[:, None, None]).all(0)
        assert int(framed.sum()) == 42**2 - THUMBNAIL**2


def test_images_of_imagenets_size_are_reduced_and_small_ones_are_not() -> None:
    assert shrink_images(torch.rand(2, 3, 224, 112), 160).shape == (2, 3, 160, 80)
    assert shrink_images(torch.rand(2, 3, 32, 32), 160).shape == (2, 3, 32, 32)


def test_the_nearest_images_of_the_prototypes_are_those_of_largest_cosine_most_used_prototype_first() -> None:
    _, objective = small_objective("swav")
    assert isinstance(objective, SwAV)
    x = torch.randn(40, objective.backbone.num_features, generator=torch.Generator().manual_seed(1))
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 4, 4)
    objective.train()
    before = state_hash(objective)
    found = nearest_images(objective, x, pixels, 3)
    assert found is not None
    assert state_hash(objective) == before
    assert all(part.training for part in objective.modules())
    columns, captions = found
    objective.eval()
    with torch.no_grad():
        cosines = F.normalize(objective.projector(x)) @ F.normalize(objective.prototypes.weight).T
    order = cosines.argmax(1).bincount(minlength=cosines.shape[1]).sort(descending=True, stable=True)
    for row, (prototype, count) in enumerate(zip(order.indices[:3].tolist(), order.values[:3].tolist(), strict=True)):
        assert captions[row].startswith(f"prototype {prototype}\nnearest to {count}\nof 40 images\ncosine ")
        nearest = cosines[:, prototype].argsort(descending=True)[:10]
        assert [round(float(column[row, 0, 0, 0] * 255)) for column in columns.values()] == nearest.tolist()


def test_a_method_without_prototypes_has_no_picture_of_them() -> None:
    _, objective = small_objective("simclr")
    x, pixels = torch.ones(3, objective.backbone.num_features), torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    assert nearest_images(objective, x, pixels, 3) is None


def test_tensorboard_gets_the_picture(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    logger = TensorBoardLogger(tmp_path, name="", version="")
    picture = draw_columns({"one": torch.rand(1, 3, 128, 128)})
    log_picture([object(), logger], "views", picture, 7)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("pictures/views")
    assert (event.step, event.height, event.width) == (7, picture.height, picture.width)


def test_other_processes_make_none(tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=False, default_root_dir=str(tmp_path))
    run = make_run("mae", tmp_path / "run", 0, "max_steps=3")
    Pictures(1, 2, 2).on_train_batch_end(cast(Any, trainer), run.module, None, None, 0)
    Pictures(1, 2, 2).on_train_start(cast(Any, trainer), run.module)
    assert not (tmp_path / "pictures").exists()


def test_a_column_with_fewer_images_ends_in_white() -> None:
    drawn = pil_to_tensor(draw_columns({"a": torch.zeros(3, 3, 128, 128), "b": torch.zeros(1, 3, 128, 128)}))
    assert int(drawn[:, TITLE + 128 + GAP :, 128 + GAP :].min()) == 255
    assert int(drawn[:, TITLE + 2 * (128 + GAP) + 5, 5].max()) == 0

"""A run on a folder of photographs of different sizes, from the first batch to the probe."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from sklearn.datasets import load_sample_images

from unlabeled.commands.build.run import build_preview, build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.views.key import ViewKey
from unlabeled.views.preview.draws import Quantity
from unlabeled.views.preview.preview import first_images, trace_views

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 cut-outs of two photographs, landscape and portrait, in two classes."""
    folder = tmp_path_factory.mktemp("photographs")
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(24):
        width, height = 40 + 17 * (number % 5), 100 - 13 * (number % 6)
        place = folder / "train" / "ab"[number % 2] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        sources[number % 2].crop((9 * number, 5 * number, 9 * number + width, 5 * number + height)).save(place)
    return folder


def config_of(photographs: Path, run_dir: Path, *overrides: str) -> DictConfig:
    chosen = ["objective=simclr", "backbone=resnet_thin", "backbone.width=0.125", "views=simclr_small", "views.size=16"]
    chosen += ["data=folder", f"data.path={photographs}", "data.image_size=48", "batch_size=8", "max_epochs=2"]
    chosen += ["trainer.accelerator=cpu", "trainer.precision=32-true", "online_knn=null", "log_every_n_steps=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*chosen, "name=photographs", f"run_dir={run_dir}", *overrides])


def trained(photographs: Path, run_dir: Path, *overrides: str) -> dict[str, Any]:
    config = config_of(photographs, run_dir, *overrides)
    resolved = open_run(config)
    run = build_run(config, resolved)
    run.fit(resolved)
    checkpoint: dict[str, Any] = torch.load(run.checkpoint, weights_only=True)
    return checkpoint


def test_a_run_on_images_of_different_sizes_is_the_same_from_memory_and_from_workers(
    photographs: Path, tmp_path: Path
) -> None:
    memory = trained(photographs, tmp_path / "memory")
    workers = trained(photographs, tmp_path / "workers", "memory_gib=0", "num_workers=2")
    assert memory["progress"]["step"] == 6
    for name, value in memory["state_dict"].items():
        assert torch.equal(workers["state_dict"][name], value), name
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("memory", "workers")]
    assert lines[0] == lines[1]
    losses = [json.loads(line)["train/loss"] for line in lines[0].splitlines() if "train/loss" in line]
    assert len(losses) == 6
    most = math.log(15) + 2 / 0.1  # sixteen views, of which the other one of an image is the least like it
    assert all(0 < loss < most for loss in losses)


def test_squares_of_the_same_images_give_another_run(photographs: Path, tmp_path: Path) -> None:
    whole = trained(photographs, tmp_path / "whole", "max_steps=1")
    square = trained(photographs, tmp_path / "square", "max_steps=1", "data.square=true")
    assert any(not torch.equal(square["state_dict"][name], value) for name, value in whole["state_dict"].items())


def test_the_preview_shows_each_image_in_its_own_frame(photographs: Path, tmp_path: Path) -> None:
    preview = build_preview(config_of(photographs, tmp_path, "preview=8"))
    batch = first_images(preview.splits.train, 8, 8, 0)
    assert batch.sizes is not None
    sizes = {tuple(size) for size in batch.sizes.tolist()}
    assert len(sizes) > 3
    page, picture = preview.write(tmp_path / "preview")
    text = page.read_text()
    for height, width in sizes:
        assert f'<svg viewBox="0 0 {width} {height}"' in text
        assert f">{width} × {height}</small>" in text
    with Image.open(picture) as image:
        assert image.width > 3 * 90  # the longest side of an image is 96 pixels at most


def test_areas_of_crops_are_measured_as_shares_of_each_image_of_its_own(photographs: Path, tmp_path: Path) -> None:
    overrides = (
        "preview=8",
        "views.groups.0.operations.0.scale=[0.3,0.4]",
        "views.groups.0.operations.0.ratio=[1,1.01]",
    )
    preview = build_preview(config_of(photographs, tmp_path, *overrides))
    batch = first_images(preview.splits.train, 8, 8, 0)
    shown = trace_views(preview.views, batch.images, batch.ids, ViewKey(0, 0, 0, 8), batch.sizes)
    area = next(each for each in preview.measured(shown)[0].measured if each.name == "crop: area")
    assert isinstance(area, Quantity)
    fits = area.values[area.values < 0.45]  # a narrow image has no square of that area, and falls back
    assert len(fits) > 1000
    assert float(fits.mean()) == pytest.approx(0.35, abs=0.02)
    assert float(fits.min()) > 0.25

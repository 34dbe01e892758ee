"""Twenty images, and nothing else given: a data set as somebody has it who tries this for the first time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from omegaconf import OmegaConf
from PIL import Image

from tests.small import composed
from unlabeled.commands.build.evaluation import build_evaluation
from unlabeled.commands.build.run import build_run
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.weights import read_checkpoint


def pictures(folder: Path, count: int, classes: int) -> None:
    generator = np.random.default_rng(count)
    for number in range(count):
        place = folder / f"class{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(place / f"{number}.png")


def chosen(tmp_path: Path, *overrides: str) -> Any:
    """The default command but for a network and a run that are quick."""
    quick = ("backbone=resnet_thin", "max_epochs=1", "pictures=null", "plan=null", "num_workers=0", "cache_gib=0")
    here = (f"run_dir={tmp_path}/run", "trainer.accelerator=cpu", "trainer.precision=32-true")
    return composed("data=folder", f"data.path={tmp_path}/images", "data.image_size=24", *quick, *here, *overrides)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_default_command_and_the_standard_evaluation_work_with_twenty_images(
    classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "images" / "train", 20, classes)
    pictures(tmp_path / "images" / "test", 9, classes)
    config = chosen(tmp_path, "probe=standard")
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    run = build_run(config, resolved)
    run.fit(resolved)
    rows = evaluate(
        build_evaluation(config, run.data, "cpu"), read_checkpoint(run.checkpoint), tmp_path / "report", "test"
    )
    said = capsys.readouterr().out
    assert "batch_size=256: there are 20 training images; 16 are taken" in said
    assert ("All 20 labelled training images are of one class, class0" in said) == (classes == 1)
    neighbours = [row for row in rows if row.features == "pretrained" and row.protocol.startswith("knn")]
    assert [row.protocol for row in neighbours] == ["knn/cosine-exp/k=20/T=0.1"]
    assert "probe.knn.k=200 is more than the 20 labelled train images: k=20." in neighbours[0].notes
    assert any("/1 per class/" in row.protocol for row in rows)
    assert not any("1%" in row.protocol for row in rows)


def test_a_probe_that_needs_more_images_names_the_key_that_says_so(tmp_path: Path) -> None:
    pictures(tmp_path / "images" / "train", 20, 2)
    pictures(tmp_path / "images" / "test", 4, 2)
    needs = (
        r"^probe\.linear_moco: needs 256 labelled training images, there are 20: give"
        r" probe\.linear_moco\.training\.batch_size no more than that, or probe=quick or none$"
    )
    config = chosen(tmp_path, "probe=linear_moco")
    with pytest.raises(UserError, match=needs):
        build_run(config, {})
    config = chosen(tmp_path, "probe=kmeans", "probe.kmeans.clusters=21")
    with pytest.raises(UserError, match=r"needs 21 labelled .* give probe\.kmeans\.clusters no more"):
        build_run(config, {})


def test_a_run_on_five_bands_is_trained_judged_and_shown(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(24):
        place = tmp_path / "images" / ("train" if number < 16 else "test") / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        bands = generator.integers(0, 256, (5, 24, 24), dtype=np.uint8)
        tifffile.imwrite(place / f"{number}.tif", bands, photometric="minisblack", planarconfig="separate")
    crop = "{_target_: unlabeled.views.operations.RandomResizedCrop, size: 24, scale: [0.2, 1.0], ratio: [0.75, 1.33],"
    group = f"{crop} interpolation: bicubic, flip: 0.5}}"
    views = f"views.groups=[{{_target_: unlabeled.views.pipeline.ViewGroup, count: 2, operations: [{group}]}}]"
    config = chosen(tmp_path, "data.channels=5", "views.size=24", views, "probe=quick", "batch_size=8")
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    assert (resolved["views"]["channels"], resolved["backbone"]["channels"]) == (5, 5)
    run = build_run(config, resolved)
    run.fit(resolved)
    rows = evaluate(
        build_evaluation(config, run.data, "cpu"), read_checkpoint(run.checkpoint), tmp_path / "report", "test"
    )
    assert {row.n_test for row in rows} == {8}
    assert (tmp_path / "report" / "report.html").is_file()

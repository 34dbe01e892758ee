"""A run that goes on is trained on the images that it was started with, wherever it and they lie by then."""

import json
import random
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from tests.conftest import ROOT
from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError


def config_of(images: Path, run_dir: Path, *overrides: str) -> DictConfig:
    data = ["data=folder", f"data.path={images}", "data.image_size=10", "num_workers=0", "plan=null", "health=none"]
    steps = ["max_steps=4", "max_epochs=null", "checkpoint_every_n_steps=2"]
    return small_run("simclr", run_dir, *data, *steps, *overrides)


def run(config: DictConfig) -> None:
    resolved = open_run(config)
    made = build_run(config, resolved)
    try:
        made.fit(resolved)
    finally:
        made.close()


def state(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return found


def back_to_step_2(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step_000000002.ckpt").replace(run_dir / "checkpoints" / "last.ckpt")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Holds ``images`` and a run of 4 steps on them that goes on from step 2."""
    draw = random.Random(0)
    for number in range(32):
        place = tmp_path / "images" / "train" / "ab"[number % 2] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (10, 10), draw.randbytes(300)).save(place)
    run(config_of(tmp_path / "images", tmp_path / "run"))
    return tmp_path


def train(folder: Path) -> Path:
    return folder / "images" / "train"


def exchange(one: Path, other: Path) -> None:
    one.rename(one.with_suffix(".x"))
    other.rename(one)
    one.with_suffix(".x").rename(other)


CHANGES: dict[str, Callable[[Path], object]] = {
    "1 file added (b/99.png)": lambda at: shutil.copy(at / "b/01.png", at / "b/99.png"),
    "1 file removed (a/30.png)": lambda at: (at / "a/30.png").unlink(),
    "1 file renamed (a/30.png is b/30.png)": lambda at: (at / "a/30.png").rename(at / "b/30.png"),
    "1 file edited (a/00.png)": lambda at: Image.new("RGB", (10, 10)).save(at / "a/00.png"),
    "2 files exchanged (a/00.png, b/01.png)": lambda at: exchange(at / "a/00.png", at / "b/01.png"),
}


def test_images_that_have_changed_are_refused_in_one_line_and_taken_with_resume_override(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(begun / "images", begun / "kept", copy_function=shutil.copy2)
    for words, change in CHANGES.items():
        change(train(begun))
        with pytest.raises(UserError) as caught:
            run(config_of(begun / "images", begun / "run"))
        message = str(caught.value)
        assert message.startswith(
            f"{begun}/run: the training images are not those that the run was started with: {words}; put them back"
        )
        assert "\n" not in message
        assert state(begun / "run")["global_step"] == 4
        shutil.rmtree(begun / "images")
        shutil.copytree(begun / "kept", begun / "images")  # with other times
    known = state(begun / "run")["data"]
    (train(begun) / "a/30.png").unlink()
    back_to_step_2(begun / "run")
    run(config_of(begun / "images", begun / "run", "resume=override"))
    assert "resume=override: the run goes on with other training images: 1 file removed" in capsys.readouterr().out
    assert state(begun / "run")["data"] != known
    run(config_of(begun / "images", begun / "run"))  # these are its images now


def test_a_run_and_its_images_may_move_and_it_goes_on_bit_for_bit(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = state(begun / "run")["state_dict"]
    assert OmegaConf.load(begun / "run" / "config.yaml").data.path == str(begun / "images")
    shutil.copytree(begun / "images", begun / "moved" / "deep")  # a copy, with other times
    shutil.move(begun / "run", begun / "run_moved")
    shutil.rmtree(begun / "images")
    back_to_step_2(begun / "run_moved")
    monkeypatch.chdir(begun / "moved")
    run(config_of(Path("deep"), begun / "run_moved"))
    ended = state(begun / "run_moved")
    assert ended["global_step"] == 4
    assert all(torch.equal(ended["state_dict"][name], value) for name, value in expected.items())
    assert ended["config"]["data"]["path"] == str(begun / "moved" / "deep")  # absolute
    assert OmegaConf.load(begun / "run_moved" / "config.yaml").run_dir == str(begun / "run_moved")


def judge(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["eval_linear.py", "probe=knn", "probe.knn.k=[3]", "num_workers=0", *overrides])
    runpy.run_path(str(ROOT / "eval_linear.py"), run_name="__main__")


def test_data_path_alone_judges_a_run_whose_images_have_moved_and_each_of_several_test_sets_has_a_report(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("test/a/1.png", "test/b/2.png", "valid/b/3.png"):
        (begun / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 10), "red").save(begun / "images" / name)
    (train(begun) / "a" / "damaged.png").write_text("no image")
    (train(begun) / "a" / "notes.txt").write_text("no image")
    (begun / "images").rename(begun / "moved")
    monkeypatch.chdir(begun)
    judge(monkeypatch, "run=run", "data.path=moved")
    results = json.loads((begun / "run" / "report" / "results.json").read_text())
    told = results["provenance"]["data"]
    assert told["description"].startswith("33 train (train) and 2 test (test) images from moved")
    page = (begun / "run" / "report" / "report.md").read_text()
    assert "1 images could not be decoded and were left out (" in page
    assert "damaged.png: not an image that Pillow can read)." in page
    assert "Of the data were left out: 1 files that are no images by their names (a/notes.txt)." in page
    judge(monkeypatch, "run=run", "data=folder", "data.path=moved", "data.image_size=10", "data.test=[test,valid]")
    assert "test set valid:" in capsys.readouterr().out
    data = json.loads((begun / "run" / "report" / "tests" / "valid" / "results.json").read_text())["provenance"]["data"]
    assert data["warnings"] == ["moved/valid has no image of 1 of the 2 classes of train (a)"]
    assert data["test_fingerprint"] != told["test_fingerprint"]


def test_without_the_list_of_files_a_change_is_noticed_too(begun: Path) -> None:
    (begun / "run" / "data_files.npz").write_bytes(b"damaged")
    (train(begun) / "a/30.png").unlink()
    with pytest.raises(UserError, match="32 images in 32 files then, 31 in 31 now; put them back"):
        run(config_of(begun / "images", begun / "run"))

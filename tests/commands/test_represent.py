"""The commands on tiny networks and the digits: what they write is what the functions give."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from tests.small import CONF, small_run
from unlabeled.commands.build.network import build_objective
from unlabeled.commands.build.representation import build_analysis_subject
from unlabeled.commands.compare_representations import compare_command
from unlabeled.commands.config import run_module
from unlabeled.commands.represent import represent
from unlabeled.errors import UserError
from unlabeled.evaluation.features import extract, state_hash
from unlabeled.objective import Objective
from unlabeled.representation.analysis import Settings, analyse, choose_images
from unlabeled.representation.cka import CKA
from unlabeled.representation.layers import Layers
from unlabeled.representation.spectrum import rankme
from unlabeled.weights import read_checkpoint

QUICK = ("images=300", "lidar_images=40", "lidar_views=3", "batch_size=64", "num_workers=0", "alpha_window=[3,20]")


def a_run(folder: Path, name: str) -> tuple[Path, Objective]:
    """The folder of a run that stands at its random start but for BatchNorm, and its objective."""
    own = () if name == "mae" else ("backbone.width=0.25",)
    config = small_run(name, folder, "data=digits", "max_steps=1", *own)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    objective = build_objective(config)
    with torch.no_grad():
        for seed in range(30):
            features = objective.backbone(torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
            if name == "simclr":
                objective.projector(features)  # type: ignore[operator]
    state = {f"objective.{key}": value for key, value in objective.state_dict().items()}
    progress = {"step": 1, "total_steps": 1, "steps_per_epoch": 1, "seed": 0}
    (folder / "checkpoints").mkdir(parents=True)
    content = {"state_dict": state, "config": resolved, "progress": progress}
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    return folder, objective


def composed(primary: str, *overrides: str) -> tuple[Any, dict[str, Any]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(primary, list(overrides))
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return config, resolved


def represented(run: Path, *overrides: str) -> dict[str, Any]:
    represent(*composed("representation", f"run={run}", *QUICK, *overrides))
    found: dict[str, Any] = json.loads((run / "report" / "representation.json").read_text())
    return found


def refused(run: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        represent(*composed("representation", f"run={run}", *QUICK, *overrides))
    return str(caught.value)


def test_what_is_written_of_a_run_is_what_the_functions_give_of_its_features(tmp_path: Path) -> None:
    run, objective = a_run(tmp_path / "run", "simclr")
    found = represented(run)
    subject, _ = build_analysis_subject(
        composed("representation", f"run={run}", *QUICK)[0], read_checkpoint(run / "checkpoints/last.ckpt")
    )
    batches = subject.data.batches(subject.source, choose_images(subject.source, 300, 0), 64)
    x = extract(objective.backbone, batches, subject.views.evaluation_view, "cpu").x
    spaces = found["spaces"]
    assert spaces["backbone"]["rankme"] == pytest.approx(rankme(x), rel=1e-6)
    z = objective.projector.eval()(x).detach()  # type: ignore[union-attr]
    assert spaces["projector"]["rankme_centred"] == pytest.approx(rankme(z, centred=True), rel=1e-4)
    assert (spaces["projector"]["images"], spaces["projector"]["dimensions"]) == (300, z.shape[1])
    assert (spaces["backbone"]["lidar_images"], spaces["backbone"]["lidar_views"]) == (40, 3)
    assert 0 < spaces["backbone"]["lidar"] < 39.01
    assert 0.9 < spaces["backbone"]["invariance"]["grayscale"] <= 1.0000001  # digits are grey
    layers, gathered = Layers(objective.backbone), CKA(64)
    with layers.recording():
        for batch in batches:
            extract(objective.backbone, [batch], subject.views.evaluation_view, "cpu")
            outputs = layers.taken()
            gathered.update(outputs, outputs)
    assert found["cka"]["images"] == 256
    torch.testing.assert_close(torch.tensor(found["cka"]["matrix"], dtype=torch.float64), gathered.matrix())
    page = (run / "report" / "representation.md").read_text()
    for picture in ("spectrum", "invariance", "cka"):
        assert f"(representation_{picture}.png)" in page
        assert (run / "report" / f"representation_{picture}.png").stat().st_size > 5000


def test_every_number_carries_what_decides_it_and_few_images_are_said(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run", "simclr")
    found = represented(run, "images=100")
    told = found["protocol"]
    assert told["checkpoint"]["sha256"] == read_checkpoint(run / "checkpoints" / "last.ckpt").sha256
    assert (told["data"]["split"], told["seed"], told["transform"]["size"]) == ("train", 0, 8)
    assert told["views"]["operations"][0]["_target_"].endswith("RandomResizedCrop")
    assert any("100 images for 128 dimensions" in note for note in found["notes"])
    assert any("LiDAR of 40 images cannot pass 39" in note for note in found["notes"])


def test_a_corrupt_image_is_left_out_and_its_batch_counts(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run", "simclr")
    (tmp_path / "images").mkdir()
    for number in range(20):
        noise = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    given = ["data=folder", f"data.path={tmp_path / 'images'}", "data.image_size=8"]
    found = represented(run, *given)
    assert (found["spaces"]["backbone"]["images"], found["cka"]["images"]) == (19, 19)
    sides = [f"first={run}", f"second={run}", f"out={tmp_path}/c.png", "images=20", "split=train"]
    compare_command(*composed("representation_compare", *given, *sides))
    assert (tmp_path / "c.png").is_file()


def test_a_vit_has_attention_distances_and_rollouts_and_a_method_without_projector_one_space(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run", "mae")
    found = represented(run, f"out={tmp_path / 'run' / 'report'}")
    assert list(found["spaces"]) == ["backbone"]
    assert torch.tensor(found["attention_distance"]["pixels"]).shape == (2, 2)
    assert 0 < max(map(max, found["attention_distance"]["pixels"])) < 8 * 2**0.5
    assert (run / "report" / "representation_attention.png").exists()
    assert found["cka"]["layers"] == ["blocks.0", "blocks.1"]


def test_a_file_from_elsewhere_is_looked_at_without_projector_beside_itself(tmp_path: Path) -> None:
    run, objective = a_run(tmp_path / "run", "simclr")
    torch.save(objective.backbone.state_dict(), tmp_path / "weights.pt")
    own = ("backbone=resnet_thin", "backbone.width=0.25", "views=simclr_small", "views.size=8", "data=digits")
    represent(*composed("representation", f"checkpoint={tmp_path / 'weights.pt'}", *own, *QUICK))
    found = json.loads((tmp_path / "report" / "representation.json").read_text())
    assert list(found["spaces"]) == ["backbone"]
    assert found["spaces"]["backbone"]["rankme"] == pytest.approx(represented(run)["spaces"]["backbone"]["rankme"])


def test_looking_changes_no_weight_no_statistic_no_mode_and_no_random_state(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run", "simclr")
    subject, _ = build_analysis_subject(
        composed("representation", f"run={run}", *QUICK)[0], read_checkpoint(run / "checkpoints/last.ckpt")
    )
    assert subject.projector is not None
    networks = (subject.backbone.train(), subject.projector.train())
    before, state = [state_hash(each) for each in networks], torch.get_rng_state()
    first, again = (analyse(subject, Settings(100, 20, 2, (3, 20), 50, 0), lambda line: None) for _ in range(2))
    assert [state_hash(each) for each in networks] == before
    assert all(module.training for each in networks for module in each.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert first.spaces == again.spaces


def test_the_size_of_batches_changes_no_number_but_cka(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run", "simclr")
    found = [represented(run, f"batch_size={size}")["spaces"] for size in (64, 15)]
    for space in ("backbone", "projector"):
        first, second = (each[space] for each in found)
        assert first.pop("invariance") == pytest.approx(second.pop("invariance"), abs=1e-4)
        windows = [each.pop("alpha_window") for each in (first, second)]
        assert windows[0] == windows[1]
        assert first == pytest.approx(second, rel=1e-3)


def test_what_cannot_be_measured_is_refused_by_its_key(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run", "simclr")
    assert refused(run, "lidar_views=1") == "lidar_views=1: must be at least 2"
    assert refused(run, "lidar_images=1") == "lidar_images=1: must be at least 2"
    assert refused(run, "images=3") == "images=3: must be at least 4"
    assert refused(run, "alpha_window=[11,12]").startswith("alpha_window=[11,12]: give two ranks")
    assert refused(run, "alpha_window=[11]").startswith("alpha_window=[11]: give two ranks")
    vit, _ = a_run(tmp_path / "vit", "mae")
    assert refused(vit, "views=mae").startswith("views.size=224: this backbone takes images of 8 pixels alone")


def test_two_architectures_are_compared_on_the_same_images_in_one_command(tmp_path: Path) -> None:
    vit, _ = a_run(tmp_path / "vit", "mae")
    resnet, _ = a_run(tmp_path / "resnet", "simclr")
    given = (f"first={vit}", f"second={resnet}", f"out={tmp_path / 'cka.png'}", "images=200", "batch_size=50")
    compare_command(*composed("representation_compare", *given, "num_workers=0"))
    found = json.loads((tmp_path / "cka.json").read_text())
    assert (tmp_path / "cka.png").stat().st_size > 5000
    across = torch.tensor(found["across"])
    assert (across.shape, found["images"]) == ((2, 4), 200)
    assert [found[side]["checkpoint"]["sha256"] for side in ("first", "second")] == [
        read_checkpoint(run / "checkpoints" / "last.ckpt").sha256 for run in (vit, resnet)
    ]
    for side in ("first", "second"):
        torch.testing.assert_close(
            torch.tensor(found[side]["matrix"]).diagonal(), torch.ones(2 if side == "first" else 4)
        )
    compare_command(*composed("representation_compare", *given[1:], f"first={resnet}", "num_workers=0"))
    itself = json.loads((tmp_path / "cka.json").read_text())
    torch.testing.assert_close(torch.tensor(itself["across"]), torch.tensor(itself["first"]["matrix"]))


def test_an_architecture_without_a_file_is_compared_at_its_random_start(tmp_path: Path) -> None:
    resnet, _ = a_run(tmp_path / "resnet", "simclr")
    side = "backbone:timm,backbone.model:vit_tiny_patch16_224,backbone.image_size:16,views:simclr_small,views.size:16"
    given = (f"second={resnet}", f"out={tmp_path / 'cka.png'}", "images=64", "batch_size=32", "num_workers=0")
    compare_command(*composed("representation_compare", f"first={{{side}}}", *given))
    found = json.loads((tmp_path / "cka.json").read_text())
    assert found["first"]["checkpoint"] == {"random_start": 0}
    assert torch.tensor(found["across"]).shape == (12, 4)


def test_mistakes_in_a_comparison_cost_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, _ = a_run(tmp_path / "run", "mae")

    def line(*overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compare", *overrides])
        with pytest.raises(SystemExit) as stopped:
            run_module("representation_compare", compare_command)
        assert stopped.value.code == 2
        printed = capfd.readouterr().err.strip().splitlines()
        assert len(printed) == 1
        return printed[0]

    given = (f"first={run}", "out=cka.png")
    assert "second: has no default" in line(*given)
    assert "second: a network without a file does not say its views: give views:…" in line(
        *given, "second={backbone:resnet18}"
    )
    assert "backbone/resnet" in line(*given, "second={backbone:resnet}")
    assert "Could not override 'dta'" in line(*given, "second={dta:cifar10}")
    assert "out: has no default" in line(f"first={run}", f"second={run}")
    assert "images=3: must be a whole number, at least 4" in line(*given, f"second={run}", "images=3")
    assert "did you mean second?" in line(*given, f"secnd={run}")
    assert "this backbone takes images of 8 pixels alone" in line(
        *given, "second={run:RUN,views:mae_small}".replace("RUN", str(run))
    )

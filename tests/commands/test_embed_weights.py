"""``unlabeled embed weights=…`` and ``unlabeled.load``: networks of others give their own features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import unlabeled
from tests.commands.test_unlabeled_command import printed
from tests.libraries import hub_cache, torch_cache, without_network
from tests.weights.test_starting_weights import FILES, each_file, written
from unlabeled.weights.starting.named import read_named

VIT = [f"backbone.{key}" for key in ("image_size=32", "patch_size=8", "width=32", "depth=2", "heads=4")]
VIEWS = ["views=simclr_small", "views.size=32"]
CHOSEN = {
    "torchvision": ["backbone=resnet18", "backbone.depth=10", "backbone.width=0.125"],
    "timm ViT": ["backbone=vit_small", *VIT, "backbone.position=learned"],
    "DINO": ["backbone=vit_small", *VIT, "backbone.position=learned"],
    "MAE": ["backbone=vit_small", *VIT],
    "MoCo v3": ["backbone=vit_small", *VIT, "backbone.position=sincos_rows_first"],
    "own run": ["backbone=resnet18", "backbone.depth=10", "backbone.width=0.125"],
}
LIBRARIES = ("timm:test_vit", "hf:timm/test_vit.r160_in1k", "torchvision:resnet18")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, nn.Module]:
    """Networks that the caches hold, by the names of their weights."""
    offline = without_network(monkeypatch, tmp_path)
    vit, resnet = timm.create_model("test_vit", num_classes=1000), torchvision.models.resnet18()
    config = {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": vit.pretrained_cfg}
    hub_cache(offline, "timm/test_vit.r160_in1k", vit, config)
    torch_cache(offline, "resnet18-f37072fd.pth", resnet)
    vit.reset_classifier(0)
    resnet.fc = nn.Identity()
    return dict(zip(LIBRARIES, (vit.eval(), vit.eval(), resnet.eval()), strict=True))


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.iterdir())]


@each_file
@torch.no_grad()
def test_a_file_of_any_layout_is_embedded_as_its_own_network_has_it(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, source = written(name, tmp_path)
    own, out = [*CHOSEN[name], *VIEWS], tmp_path / "x.npy"
    typed = [f"weights={path}", *own, f"data={photos}", "accelerator=cpu", "num_workers=0", f"out={out}"]
    code, said = printed(capfd, monkeypatch, "embed", *typed)
    assert code == 0, said
    assert f"weights={path} (" in said
    model = unlabeled.load(path, overrides=own)
    expected = source(model.transform(pictures(photos)))
    assert torch.allclose(model(model.transform(pictures(photos))), expected, rtol=0, atol=1e-6)
    assert np.abs(np.load(out) - expected.numpy()).max() < 1e-6
    record = json.loads(out.with_name("x.npy.json").read_text())
    assert record["checkpoint"]["sha256"] == read_named(None, str(path), None).sha256


@pytest.mark.parametrize("origin", LIBRARIES)
@torch.no_grad()
def test_weights_of_a_library_need_no_other_key_and_images_are_prepared_as_it_says(
    origin: str,
    libraries: dict[str, nn.Module],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "x.npy"
    code, said = printed(
        capfd, monkeypatch, "embed", f"weights={origin}", f"data={photos}", "accelerator=cpu", f"out={out}"
    )
    assert code == 0, said
    model = unlabeled.load(origin)
    preprocess = model.transform.preprocess
    ours = (preprocess.size, preprocess.crop, preprocess.interpolation, list(preprocess.mean or []))
    theirs: Any = (224, 0.875, "bilinear", [0.485, 0.456, 0.406])
    assert ours == (theirs if origin.startswith("torchvision") else (160, 0.95, "bicubic", [0.5, 0.5, 0.5]))
    images = model.transform(pictures(photos))
    expected = libraries[origin](images).numpy()
    assert np.abs(model(images).numpy() - expected).max() == 0
    assert np.abs(np.load(out) - expected).max() < 1e-5
    assert np.array_equal(unlabeled.embed(origin, photos, accelerator="cpu").x, np.load(out))


def test_a_vit_of_a_file_for_larger_images_is_interpolated_and_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = written("DINO", tmp_path)
    own = [*CHOSEN["DINO"], "backbone.image_size=48", "views=simclr_small", "views.size=48"]
    out = tmp_path / "x.npy"
    code, said = printed(capfd, monkeypatch, "embed", f"weights={path}", *own, f"data={photos}", f"out={out}")
    assert code == 0, said
    note = "positions of 4×4 patches were interpolated (bicubic) to 6×6"
    assert note in said
    assert any(note in each for each in json.loads(out.with_name("x.npy.json").read_text())["checkpoint"]["notes"])


@pytest.mark.parametrize("said", [{"architecture": "none"}, {"architecture": 3}, [1], {"architecture": "test_vit"}])
def test_a_repository_that_does_not_say_what_it_holds_asks_for_the_backbone(
    said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = without_network(monkeypatch, tmp_path)
    hub_cache(offline, "some/where", timm.create_model("test_vit", num_classes=0), said)
    with pytest.raises(unlabeled.UserError, match=r"some/where does not say what it was made with: give views=…"):
        unlabeled.load("hf:some/where")


@pytest.mark.parametrize(
    "change",
    [{"mean": "all"}, {"mean": [0.5]}, {"crop_pct": 7.0}, {"input_size": [3, -4, -4]}, {"std": [0, 0, 0]}],
)
def test_what_a_repository_says_of_its_images_is_checked_like_a_key(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = without_network(monkeypatch, tmp_path)
    vit = timm.create_model("test_vit", num_classes=0)
    hub_cache(offline, "some/where", vit, {"architecture": "test_vit", "pretrained_cfg": vit.pretrained_cfg | change})
    with pytest.raises(unlabeled.UserError, match=r"^(hf:some/where: )?(views|backbone)\.") as caught:
        unlabeled.load("hf:some/where")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ("timm:test_vitt", "timm has no such model; did you mean test_vit"),
        ("torchvision:resnet19", "torchvision has no such classification model; did you mean resnet18"),
        ("torchvision:resnet18:V9", "resnet18 has IMAGENET1K_V1"),
        ("timm:test_vit", "not in .*, and this machine is offline"),
        ("torchvision:resnet18", "not in .*, and this machine is offline"),
        ("hf:timm/test_vit.r160_in1k", "not in .*, and this machine is offline"),
        ("no.pth", "no such file or folder of a run"),
    ],
)
def test_weights_that_are_not_there_are_one_line(
    origin: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    without_network(monkeypatch, tmp_path)
    code, said = printed(capfd, monkeypatch, "embed", f"weights={origin}", "data=digits", f"out={tmp_path}/x.npy")
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith(f"error: weights={origin}: ")
    with pytest.raises(unlabeled.UserError, match=line):
        read_named(None, None, origin)


def test_a_file_that_does_not_fit_is_named_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = written("DINO", tmp_path)
    for own in (["views=simclr_small"], [*CHOSEN["torchvision"], *VIEWS], [*CHOSEN["MAE"], *VIEWS]):
        typed = [f"weights={path}", *own, "data=digits", f"out={tmp_path}/x.npy"]
        code, said = printed(capfd, monkeypatch, "embed", *typed)
        assert (code, said.count("\n")) == (2, 1), said
        assert said.startswith(f"error: weights={path} ") or said.startswith(f"error: weights={path}: ")
    with pytest.raises(unlabeled.UserError, match="give one of run=outputs/NAME, checkpoint=FILE and weights="):
        read_named("a", None, "b")
    with pytest.raises(unlabeled.UserError, match=r"features: decides nothing of a backbone that is loaded; allowed"):
        unlabeled.load(path, features="cls")


def test_every_layout_of_the_starting_weights_is_tried() -> None:
    assert FILES.keys() == CHOSEN.keys()

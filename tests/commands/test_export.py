"""What is exported gives the same features in the library that it is for, or nothing is left behind."""

import hashlib
import json
import math
import os
import re
import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conftest import Script
from tests.small import CONF, composed, members
from unlabeled.backbones.regnet import stages
from unlabeled.commands.export import export, unfinished
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.weights import load_backbone, targets
from unlabeled.weights.architecture import REGNETS, REGNETS_X, to_timm
from unlabeled.weights.card import without_paths
from unlabeled.weights.feature_comparison import feature_differences, generate_images
from unlabeled.weights.preprocess import Preprocess
from unlabeled.weights.pretrained import Transform
from unlabeled.weights.targets import Writer

Spec = dict[str, Any]

RESNET18: Spec = {"_target_": "unlabeled.backbones.resnet.ResNet", "depth": 18, "width": 1.0, "stem": "imagenet"}
RESNET50 = RESNET18 | {"depth": 50}
THIN = RESNET18 | {"depth": 10, "width": 0.125, "stem": "cifar"}
REGNET: Spec = {"_target_": "unlabeled.backbones.regnet.RegNetY", "depth": 5, "w_0": 16, "w_a": 16.0, "w_m": 1.9}
REGNET |= {"group_width": 8, "_convert_": "all"}
REGNET_400MF = REGNET | {"depth": 16, "w_0": 48, "w_a": 27.89, "w_m": 2.09}
VIT: Spec = {"_target_": "unlabeled.backbones.vit.ViT", "image_size": 32, "patch_size": 8, "width": 48}
VIT |= {"depth": 2, "heads": 2, "pooling": "cls"}
VIT_GAP = VIT | {"pooling": "gap", "position": "learned"}
VIT_TINY = VIT | {"patch_size": 16, "width": 192, "depth": 12, "heads": 3}
TIMM: Spec = {"_target_": "unlabeled.backbones.timm.TimmBackbone", "model": "mobilenetv3_small_050"}
TORCHVISION: Spec = {"_target_": "unlabeled.backbones.torchvision.TorchvisionBackbone", "model": "squeezenet1_1"}
SHUFFLENET = TORCHVISION | {"model": "shufflenet_v2_x0_5"}
MOBILENET = TORCHVISION | {"model": "mobilenet_v3_small"}

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in targets.NEEDS["onnx"]), reason="needs onnx, onnxscript and onnxruntime"
)
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")


def network(spec: Spec) -> nn.Module:
    """Freshly initialised, but for BatchNorm statistics and biases, which start at values that hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = instantiate(spec)
        for name, value in made.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                low = 0.5 if name.endswith(("weight", "running_var")) else -0.3
                value.uniform_(low, low + 0.6)
    return made.eval()


def a_run(folder: Path, spec: Spec, size: int = 32, **more: Any) -> Path:
    """A run's folder with its last checkpoint, whose data is not there."""
    views = {"_target_": "unlabeled.views.pipeline.Views", "size": size, "groups": []}
    views |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    views |= {"evaluation_crop": 0.875, "evaluation_interpolation": "bicubic"}
    config = {"name": "a run", "seed": 3, "backbone": spec, "views": views, "batch_size": 64}
    config |= {"objective": {"_target_": "unlabeled.objectives.simclr.SimCLR", "temperature": 0.2}}
    config |= {
        "data": {"_target_": "unlabeled.data.sources.torchvision.cifar10", "root": "/home/me/secret", "download": True}
    }
    state = {f"objective.backbone.{key}": value for key, value in network(spec).state_dict().items()}
    progress = {"step": 30, "total_steps": 40, "steps_per_epoch": 10, "seed": 3}
    (folder / "checkpoints").mkdir(parents=True)
    content = {"state_dict": state, "config": config | more, "progress": progress}
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(json.dumps(config | more))
    return folder


def exported(*overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("export", list(overrides))
    export(config, {key: config[key] for key in ("run", "checkpoint", "to", "out", "data_images")})


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        exported(*overrides)
    assert str(caught.value).isprintable()
    return str(caught.value)


def run_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every python block of the page, in order, where the page lies."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (folder / "snippet.py").write_text("\n".join(blocks))
    photograph(folder / "photograph.jpg")
    monkeypatch.chdir(folder)
    return runpy.run_path("snippet.py")


def photograph(file: Path) -> None:
    from PIL import Image

    image = generate_images(1, 80)[0, :, :60].permute(1, 2, 0)  # 60 high, 80 wide
    Image.fromarray(image.numpy()).save(file, quality=95)


def relative(ours: Tensor, theirs: Any) -> float:
    difference = (ours - torch.as_tensor(theirs)).abs().max() / ours.square().mean().sqrt()
    return float(difference)


PAIRS = [
    (RESNET18, "torchvision"),
    (RESNET18, "timm"),
    (RESNET50, "timm"),
    (RESNET18 | {"depth": 10}, "huggingface"),
    (THIN, "safetensors"),
    (REGNET, "timm"),
    (REGNET, "huggingface"),
    (REGNET_400MF, "torchvision"),
    (VIT, "timm"),
    (VIT_GAP, "timm"),
    (VIT_GAP, "huggingface"),
    (VIT_TINY, "timm"),
    (VIT, "safetensors"),
    (TIMM, "timm"),
    (TIMM, "huggingface"),
    (TIMM, "safetensors"),
    (SHUFFLENET, "torchvision"),
    (MOBILENET, "torchvision"),
    pytest.param(THIN, "onnx", marks=needs_onnx),
    pytest.param(VIT_GAP, "onnx", marks=needs_onnx),
    pytest.param(REGNET, "onnx", marks=needs_onnx),
]


@pytest.mark.parametrize(("spec", "to"), PAIRS, ids=lambda value: value if isinstance(value, str) else None)
def test_the_lines_of_the_card_give_our_features_of_a_photograph(
    spec: Spec, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run", spec)
    exported(f"run={run}", f"to={to}")
    left = run_the_card(run / "export" / to, monkeypatch)
    images = left["images"]
    assert images.shape == (1, 3, 32, 32)
    with torch.inference_mode():
        wanted = network(spec)(images)
    assert relative(wanted, left["features"]) <= 1e-5
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_the_torchvision_lines_of_the_card_prepare_an_image_as_evaluation_does(crop: float, tmp_path: Path) -> None:
    preprocess = Preprocess(32, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3], crop, "bicubic")
    photograph(tmp_path / "photograph.jpg")
    (tmp_path / "snippet.py").write_text(preprocess.snippet().replace("photograph", f"{tmp_path}/photograph"))
    theirs = runpy.run_path(str(tmp_path / "snippet.py"))["images"]
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    ours = preprocess.views().evaluation_view(pil_to_tensor(Image.open(tmp_path / "photograph.jpg"))[None])
    assert (ours - theirs).abs().max() <= 1 / 255 / 0.2  # Pillow rounds to 256 levels


def test_the_card_says_what_the_weights_are_and_names_no_folder_and_no_key(tmp_path: Path) -> None:
    optimizer = {"_target_": "x.Recipe", "list": "/home/me/lists/one_percent.txt", "lr": 0.3}
    run = a_run(tmp_path / "run", THIN, optimizer=optimizer, logger={"api_key": "hunter2"})
    exported(f"run={run}", "to=safetensors")
    folder = run / "export" / "safetensors"
    page = (folder / "README.md").read_text()
    said = ["SimCLR", "ResNet", "64 features out", "| epochs | 3 |", "| optimizer steps | 30 of 40 |", "lr: 0.3"]
    said += [
        f"| parameters | {sum(each.numel() for each in network(THIN).parameters()):,} |",
        "list: one_percent.txt",
        "license: unknown",
        "| data | cifar10 |",
        "None yet.",
    ]
    said += [
        "minus [0.4, 0.5, 0.6], divided by [0.2, 0.25, 0.3]",
        "| 8 generated | 0.0e+00 |",
        "at most 1e-05 is allowed",
    ]
    said += ["32 × 32 pixels; the central 87.5 % of the shorter side, resized (bicubic, antialiased)", "safetensors 0."]
    assert [each for each in said if each not in page] == []
    assert hashlib.sha256((run / "checkpoints" / "last.ckpt").read_bytes()).hexdigest() in page
    assert [each for each in ("secret", "hunter2", "/home", str(tmp_path)) if each in page] == []
    front: Any = OmegaConf.create(page.split("---")[1])
    assert front["tags"] == ["self-supervised-learning", "image-feature-extraction", "simclr"]
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone"] == THIN
    assert config["preprocess"] == {
        "size": 32,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "crop": 0.875,
        "interpolation": "bicubic",
    }


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("CIFAR-10 from /data/me/cifar, 50,000 images", "CIFAR-10 from cifar, 50,000 images"),
        ("from ~/cifar and ../x/y", "from cifar and y"),
        ("s3://bucket/sub/train.tar?key=abc", "train.tar"),
        ("https://me:word@host", "…"),
        ("a 3×3 stem, 1:2, 8 / 255, and/or", "a 3×3 stem, 1:2, 8 / 255, and/or"),
    ],
)
def test_of_a_path_or_an_address_the_last_part_is_kept(text: str, left: str) -> None:
    assert without_paths({"a": [text]}) == {"a": [left]}


def report(run: Path, sha256: str) -> None:
    row = {"features": "pretrained", "protocol": "knn/k=20", "top1": 61.2345, "n_test": 1234, "interval": [60.0, 62.5]}
    provenance = {"checkpoint": {"sha256": sha256}, "date": "2026-01-02T03:04", "data": {"description": "some images"}}
    (run / "report").mkdir()
    (run / "report" / "results.json").write_text(json.dumps({"rows": [row], "provenance": provenance}))


def test_results_stand_on_the_card_with_their_protocol_where_they_are_of_this_checkpoint(tmp_path: Path) -> None:
    run, other = a_run(tmp_path / "run", THIN), a_run(tmp_path / "other", THIN)
    report(run, hashlib.sha256((run / "checkpoints" / "last.ckpt").read_bytes()).hexdigest())
    report(other, "of another file")
    exported(f"run={run}", "to=safetensors")
    exported(f"run={other}", "to=safetensors")
    pages = [(each / "export" / "safetensors" / "README.md").read_text() for each in (run, other)]
    assert "| pretrained | `knn/k=20` | 61.23 | 60.00 to 62.50 | 1,234 |" in pages[0]
    assert "| data | some images |" in pages[0]
    assert "61.23" not in pages[1]
    assert "Of another checkpoint than this one, so left out." in pages[1]


def test_features_are_compared_on_the_data_where_it_is_there(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", THIN)
    exported(f"run={run}", "to=safetensors", "data=digits", "data_images=5")
    page = (run / "export" / "safetensors" / "README.md").read_text()
    assert "| 5 of the data (test) | 0.0e+00 |" in page
    assert "| data | scikit-learn digits, " in page


def test_data_that_is_not_there_is_said_and_nothing_is_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run", THIN)
    exported(f"run={run}", "to=safetensors")
    assert "not compared on images of the data: CIFAR-10 is not, or not whole, in data.root" in capsys.readouterr().out


def test_a_file_from_elsewhere_is_exported_with_the_backbone_and_views_that_are_given(tmp_path: Path) -> None:
    torch.save(network(RESNET18).state_dict(), tmp_path / "weights.pth")
    given = [f"checkpoint={tmp_path / 'weights.pth'}", "to=timm", f"out={tmp_path / 'new' / 'folder'}"]
    assert "does not say what it was made with: give views=" in refusal(*given, "backbone=resnet18")
    assert "does not say what it was made with: give backbone=" in refusal(*given, "views=moco_small")
    exported(*given, "backbone=resnet18", "views=moco_small")
    page = (tmp_path / "new" / "folder" / "README.md").read_text()
    assert "# weights\n" in page
    assert "| objective | not known: the checkpoint does not say |" in page
    assert "| weights | plain state dict: the network |" in page


def damaged(writer: Writer, damage: Callable[[dict[str, Tensor]], None]) -> Writer:
    """The writer, whose file is then changed."""

    def write(source: targets.ExportSource, folder: Path) -> targets.ExportedModel:
        written = writer(source, folder)
        state = load_file(folder / "model.safetensors")
        damage(state)
        save_file(state, folder / "model.safetensors")
        return written

    return write


def nudge(state: dict[str, Tensor]) -> None:
    state["layer1.0.conv1.weight"].view(-1)[0] += 0.05


def spoil(state: dict[str, Tensor]) -> None:
    state["bn1.bias"][0] = math.nan


def drop(state: dict[str, Tensor]) -> None:
    del state["bn1.bias"]


def tree(folder: Path) -> set[Path]:
    return {each.relative_to(folder) for each in folder.rglob("*")}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (nudge, "on 8 generated image(s) the reloaded model's features differ by "),
        (
            spoil,
            "the reloaded model's features differ by nan of their scale, at most 1e-05 is allowed; nothing is kept",
        ),
        (
            drop,
            "nothing is kept: RuntimeError: Error(s) in loading state_dict for ResNet: Missing key(s)",
        ),
    ],
)
def test_an_export_with_other_features_fails_and_leaves_nothing(
    damage: Callable[[dict[str, Tensor]], None], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run", THIN)
    before = tree(tmp_path)
    monkeypatch.setitem(targets.WRITERS, "safetensors", damaged(targets.write_safetensors, damage))
    assert complaint in refusal(f"run={run}", "to=safetensors")
    assert tree(tmp_path) == before


def test_a_failure_or_an_interruption_leaves_the_earlier_export_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run", THIN)
    exported(f"run={run}", "to=safetensors")
    file = run / "export" / "safetensors" / "model.safetensors"
    before, content = tree(tmp_path), file.read_bytes()

    def interrupted(source: targets.ExportSource, folder: Path) -> targets.ExportedModel:
        targets.write_safetensors(source, folder)
        raise KeyboardInterrupt

    monkeypatch.setitem(targets.WRITERS, "safetensors", interrupted)
    with pytest.raises(SystemExit, match="130"):
        exported(f"run={run}", "to=safetensors")
    monkeypatch.setitem(targets.WRITERS, "safetensors", damaged(targets.write_safetensors, nudge))
    refusal(f"run={run}", "to=safetensors")
    assert tree(tmp_path) == before
    assert file.read_bytes() == content


def test_an_earlier_export_is_replaced_and_no_other_file_is(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run", THIN), tmp_path / "out"
    exported(f"run={run}", "to=safetensors", f"out={out}")
    (out / "config.json").write_text("old")
    exported(f"run={run}", "to=safetensors", f"out={out}")
    assert json.loads((out / "config.json").read_text())["num_features"] == 64
    (out / "notes.txt").write_text("mine")
    assert f"out={out}: holds notes.txt, which is of no earlier export" in refusal(
        f"run={run}", "to=safetensors", f"out={out}"
    )
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("# A page of mine")
    assert "holds README.md" in refusal(f"run={run}", "to=safetensors", f"out={tmp_path / 'project'}")
    for name in ("notes.txt", "notes.txt/below"):
        assert f"{out / 'notes.txt'} is a file" in refusal(f"run={run}", "to=safetensors", f"out={out / name}")
    assert "give the name of a folder that can be written" in refusal(
        f"run={run}", "to=safetensors", "out=/proc/new/folder"
    )


INSTEAD = "what it can be written as: "


@pytest.mark.parametrize(
    ("spec", "to", "reason"),
    [
        (THIN, "timm", "timm's ResNets have no 3×3 stem without a max-pool (backbone.stem=cifar)"),
        (THIN, "torchvision", f"(backbone.stem=cifar); {INSTEAD}to=safetensors, to=onnx or to=torch_export"),
        (THIN | {"stem": "imagenet"}, "huggingface", "have a stem of 64 channels (backbone.width=0.125)"),
        (RESNET18 | {"padding": "end"}, "torchvision", "ResNets pad both sides alike (backbone.padding=end)"),
        (RESNET18 | {"pool": 1}, "timm", "timm's ResNets have their own max-pool (backbone.pool=1)"),
        (RESNET18 | {"depth": 10}, "torchvision", f"ResNet of depth 10 (backbone.depth); {INSTEAD}to=timm, to=hugg"),
        (VIT, "torchvision", f"ViT is no network of torchvision; {INSTEAD}to=timm, to=huggingface, to=safet"),
        (REGNET, "torchvision", f"no RegNetY of these parameters; {INSTEAD}to=timm, to=huggingface, to=saf"),
        (
            REGNET | {"depth": 2},
            "timm",
            f"RegNets have four stages, this one has 2; {INSTEAD}to=safetensors, to=onnx or to=torch_export",
        ),
        (SHUFFLENET, "timm", f"TorchvisionBackbone is no network of timm; {INSTEAD}to=torchvision, to=safetensors"),
        (TIMM, "torchvision", f"TimmBackbone is no network of torchvision; {INSTEAD}to=timm, "),
    ],
)
def test_what_a_target_has_no_network_for_is_refused_with_what_is_possible(
    spec: Spec, to: str, reason: str, tmp_path: Path
) -> None:
    run = a_run(tmp_path / "run", spec)
    before = tree(tmp_path)
    message = refusal(f"run={run}", f"to={to}")
    assert message.startswith(f"to={to}: ")
    assert reason in message
    assert tree(tmp_path) == before


def test_a_mistaken_command_is_one_line_that_says_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run", VIT)
    assert "to=tim: no such target; did you mean timm?" in refusal(f"run={run}", "to=tim")
    assert "give either run=outputs/NAME or checkpoint=FILE" in refusal("to=timm")
    assert "there is no checkpoints/last.ckpt in it" in refusal(f"run={tmp_path}", "to=timm")
    assert "data_images=-1: must be at least 0" in refusal(f"run={run}", "to=timm", "data_images=-1")
    wrong = ["views=simclr_small", "views.size=24"]
    assert "views.size=24: this backbone takes images of 32 pixels alone" in refusal(f"run={run}", "to=timm", *wrong)
    monkeypatch.setattr(targets, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert refusal(f"run={run}", "to=onnx") == "to=onnx: onnxscript not installed: pip install 'unlabeled[export]'"


def test_the_command_ends_in_one_line_and_takes_no_unknown_key(script: Script) -> None:
    command = "ssl/unlabeled/commands/export.py"
    finished = script(command, "run=nowhere", "to=timn")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: to=timn: did you mean timm?")
    assert len(finished.stderr.splitlines()) == 1


def test_a_difference_is_of_the_root_mean_square_and_another_shape_is_refused() -> None:
    def ours(images: Tensor) -> Tensor:
        return images.flatten(1)

    images = torch.tensor([[[[3.0, 4.0]]]])
    measured = feature_differences("x", Function(ours), lambda x: ours(x) + 1e-5, {"a": images})
    assert measured["a"] == pytest.approx(1e-5 / math.sqrt(12.5), rel=0.1)
    with pytest.raises(UserError, match=r"differ by 1\.\de-03 of their scale"):
        feature_differences("x", Function(ours), lambda x: ours(x) + 4e-3, {"a": images})
    with pytest.raises(UserError, match="the checkpoint's own features are all 0, or not finite"):
        feature_differences("x", Function(ours), ours, {"a": images * math.nan})
    with pytest.raises(UserError, match="the checkpoint's own features are all 0, or not finite"):
        feature_differences("x", Function(ours), ours, {"a": images * 0})
    with pytest.raises(UserError, match=r"features are \[1\] and not \[1, 2\]"):
        feature_differences("x", Function(ours), lambda x: ours(x)[:, 0], {"a": images})


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def test_a_wrappers_name_in_a_key_is_not_written(tmp_path: Path) -> None:
    source = targets.ExportSource(Wrapped(), THIN, Preprocess(32, None, None, 1.0, "bicubic"))
    with pytest.raises(ValueError, match=r"names of wrappers among the tensors: module\.weight"):
        targets.write_safetensors(source, tmp_path)


class Wrapped(Backbone):
    num_features = 1

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(1, 1)


def test_torchvisions_regnets_have_the_stages_that_our_table_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models.regnet, "_regnet", lambda params, *rest, **more: params)
    names = [name for name in torchvision.models.list_models(torchvision.models) if name.startswith("regnet_")]
    assert set(names) == {*REGNETS, *REGNETS_X}
    for name, parameters in (REGNETS | REGNETS_X).items():
        theirs = torchvision.models.get_model(name)
        widths = list(zip(theirs.widths, theirs.depths, theirs.group_widths, strict=True))
        assert [tuple(stage) for stage in stages(*parameters, "torchvision")] == widths
        assert theirs.se_ratio == (0.25 if name in REGNETS else None)


@pytest.mark.parametrize("name", [name for name in members("backbone") if name not in ("timm", "torchvision")])
def test_timm_has_every_backbone_of_conf_but_thin_and_wide_resnets_tensor_by_tensor(name: str) -> None:
    spec = composed(f"backbone={name}", "views.size=64" if "small" in name else "views.size=224").backbone
    with torch.device("meta"):  # shapes alone: the largest would take gigabytes
        backbone: Backbone = instantiate(spec)
    if name == "resnet_thin" or name.startswith("wrn_"):
        with pytest.raises(UserError):
            to_timm(backbone, spec, "timm")
        return
    found = to_timm(backbone, spec, "timm")
    with torch.device("meta"):
        theirs = timm.create_model(found.name, num_classes=0, **found.arguments)
    assert {key: value.shape for key, value in theirs.state_dict().items()} == {
        key: value.shape for key, value in found.state.items()
    }


def test_timm_knows_from_the_file_how_images_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path / "run", VIT)
    for to in ("timm", "huggingface"):
        exported(f"run={run}", f"to={to}")
        model = run_the_card(run / "export" / to, monkeypatch)["model"]
        config = timm.data.resolve_model_data_config(model)
        sizes_and_colours = [list(config[key]) for key in ("input_size", "mean", "std")]
        assert sizes_and_colours == [[3, 32, 32], [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]]
        assert (config["crop_pct"], config["interpolation"]) == (0.875, "bicubic")


def test_timm_puts_a_classifier_on_the_hub_folder_and_keeps_the_backbone(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", RESNET18)
    exported(f"run={run}", "to=huggingface")
    folder = run / "export" / "huggingface"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    images = torch.rand(2, 3, 32, 32)
    ours = network(RESNET18)
    with torch.inference_mode():
        assert model.eval()(images).shape == (2, 7)
        assert relative(ours(images), model.forward_head(model.forward_features(images), pre_logits=True)) <= 1e-5
    text = (folder / "config.json").read_text()
    assert [word for word in ("timm/", "imagenet", "http", "license") if word in text] == []


@needs_transformers
@pytest.mark.parametrize("spec", [RESNET18, VIT_GAP, REGNET], ids=["resnet", "vit", "regnet"])
def test_transformers_reads_the_hub_folder(spec: Spec, tmp_path: Path) -> None:
    import transformers

    run = a_run(tmp_path / "run", spec)
    exported(f"run={run}", "to=huggingface")
    model = transformers.AutoModel.from_pretrained(run / "export" / "huggingface").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert relative(network(spec)(images), model(images).pooler_output) <= 1e-5


@needs_onnx
def test_the_onnx_file_says_its_opset_and_takes_any_number_of_images(tmp_path: Path) -> None:
    import onnxruntime

    run = a_run(tmp_path / "run", VIT)
    exported(f"run={run}", "to=onnx")
    folder = run / "export" / "onnx"
    assert (
        f"ONNX opset {targets.OPSET}; input `images` float32 [batch, 3, 32, 32]" in (folder / "README.md").read_text()
    )
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 3, 7):
        images = torch.rand(count, 3, 32, 32)
        with torch.inference_mode():
            assert relative(network(VIT)(images), session.run(None, {"images": images.numpy()})[0]) <= 1e-5


def test_generated_images_differ_from_each_other_and_stay_the_same() -> None:
    images = generate_images(8, 32)
    assert torch.equal(images, generate_images(8, 32))
    assert images.float().flatten(1).std(1).min() > 10
    assert torch.cdist(images.float().flatten(1), images.float().flatten(1)).fill_diagonal_(1e9).min() > 1000


BACK = [
    (RESNET18, "torchvision"),
    (RESNET18, "timm"),
    (REGNET, "timm"),
    (REGNET, "safetensors"),
    (VIT_GAP, "huggingface"),
]
BACK += [(TIMM, "timm"), (TIMM, "safetensors"), (MOBILENET, "torchvision")]


@pytest.mark.parametrize(("spec", "to"), BACK, ids=lambda value: value if isinstance(value, str) else None)
def test_what_went_out_comes_back_in_tensor_by_tensor(spec: Spec, to: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", spec)
    exported(f"run={run}", f"to={to}")
    file = next(each for each in (run / "export" / to).iterdir() if each.stem == "model")
    state = load_backbone(file, instantiate(spec)).state_dict()
    ours = network(spec).state_dict()
    assert [key for key, value in ours.items() if not torch.equal(state[key], value)] == []


def test_an_export_that_is_stopped_between_its_renames_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, renames = tmp_path / "out", list[str]()
    out.mkdir()
    (out / "earlier").touch()
    rename = os.rename

    def stopped(old: Path, new: Path) -> None:
        renames.append(new.name)
        if len(renames) == 2:
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(KeyboardInterrupt), unfinished(out) as folder:
        (folder / "later").touch()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert [each.name for each in out.iterdir()] == ["earlier"]


def test_a_network_for_images_of_other_channels_is_refused_in_one_line(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", THIN | {"channels": 1})
    assert refusal(f"run={run}", "to=safetensors").startswith("backbone.channels=1: an export is for images of three")
    with pytest.raises(UserError, match=r"the backbone takes 1 channels: give the backbone tensors \[B, 1, 8, 8\]"):
        Transform(Preprocess(8, [0.5], [0.2], 1.0, "bilinear"), 1)(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="images: the list is empty"):
        Transform(Preprocess(8, None, None, 1.0, "bilinear"))([])

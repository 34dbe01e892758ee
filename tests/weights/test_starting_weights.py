"""A run starts from weights that exist: the same features at step 0, or one line; and goes on without the file."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.libraries import hub_cache, torch_cache, without_network
from tests.objectives.test_ibot import make_objective, vit
from tests.processes import start
from tests.small import composed, members, small_objective, small_run
from tests.training.test_kill import Killed
from tests.training.test_resume import CtrlC
from tests.weights import test_layouts as official
from unlabeled.commands.build.network import build_backbone, build_objective
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import check_same, open_run
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, HasTeacher
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.run import Run
from unlabeled.weights import load_objective, read_checkpoint
from unlabeled.weights.load import checkpoint_of
from unlabeled.weights.starting.start import COPY, read_start, starting_backbone

VIT: dict[str, Any] = {
    "_target_": "unlabeled.backbones.vit.ViT",
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 2,
    "heads": 4,
}
RESNET: dict[str, Any] = {
    "_target_": "unlabeled.backbones.resnet.ResNet",
    "depth": 10,
    "width": 0.125,
    "stem": "imagenet",
}
LEARNED = VIT | {"position": "learned"}
MOCO_V3 = VIT | {"position": "sincos_rows_first", "initialisation": "moco_v3"}
FILES: dict[str, tuple[Callable[[], Backbone], Callable[[Any], Any], dict[str, Any]]] = {
    "torchvision": (official.resnet, official.bare, RESNET),
    "timm ViT": (official.vit_learned, official.bare, LEARNED),
    "DINO": (official.vit_learned, official.dino(""), LEARNED),
    "MAE": (official.vit, official.mae, VIT),
    "MoCo v3": (official.vit_moco_v3, official.moco_v3("head"), MOCO_V3),
    "own run": (official.resnet, official.own_run, RESNET),
}
each_file = pytest.mark.parametrize("name", FILES)


def written(name: str, folder: Path, change: Callable[[Any], None] = lambda content: None) -> tuple[Path, Backbone]:
    """A file of that project, and the network that is in it."""
    make, layout, _ = FILES[name]
    source = official.seeded(make, 1)
    content = layout({key: value.clone() for key, value in source.state_dict().items()})
    change(content)
    return official.saved(content, folder), source


def config_with(spec: dict[str, Any], objective: str = "simclr") -> Any:
    config = composed(f"objective={objective}")
    config.backbone = OmegaConf.create(spec)
    return config


@torch.no_grad()
def check_features(loaded: Backbone, source: Backbone, size: int = 32) -> None:
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(loaded.eval()(images), source.eval()(images), rtol=0, atol=1e-6)


@each_file
def test_the_features_of_step_0_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    path, source = written(name, tmp_path)
    objective = build_objective(config_with(FILES[name][2]), read_start(str(path), "backbone", None))
    check_features(objective.backbone, source)


@each_file
@pytest.mark.parametrize("change", ["missing", "renamed", "reshaped"])
def test_a_tensor_that_finds_no_place_is_one_line_with_its_key(name: str, change: str, tmp_path: Path) -> None:
    make, _, spec = FILES[name]
    key = "blocks.1.mlp.fc1.weight" if make is not official.resnet else "layer2.0.conv1.weight"

    def spoil(content: Any) -> None:
        holders = [(holder, last) for holder, last in official.tensors_of(content).values() if last.endswith(key)]
        for holder, last in holders:
            tensor = holder.pop(last)
            if change == "renamed":
                holder[last.replace("weight", "wait")] = tensor
            if change == "reshaped":
                holder[last] = tensor[:-1]

    path, _ = written(name, tmp_path, spoil)
    with pytest.raises(UserError) as caught:
        build_objective(config_with(spec), read_start(str(path), "backbone", None))
    line = str(caught.value)
    assert line.startswith(f"weights={path}")
    assert key in line
    assert "\n" not in line
    assert ("has shape" in line) == (change == "reshaped")
    assert ("wait" in line) == (change == "renamed")


@pytest.mark.parametrize("name", ["timm ViT", "DINO", "MAE", "MoCo v3"])
@pytest.mark.parametrize("size", [16, 48])
def test_a_vit_for_another_size_gives_what_the_file_gives_for_images_of_that_size_and_says_so(
    name: str, size: int, tmp_path: Path
) -> None:
    path, source = written(name, tmp_path)
    start = read_start(str(path), "backbone", None)
    objective = build_objective(config_with(FILES[name][2] | {"image_size": size}), start)
    check_features(objective.backbone, source, size)
    assert f"positions of 4×4 patches were interpolated (bicubic) to {size // 8}×{size // 8}" in str(start)
    assert start.record()["resized"]


def test_a_vit_of_timm_is_interpolated_as_timm_does_it(tmp_path: Path) -> None:
    spec = {"_target_": "unlabeled.backbones.timm.TimmBackbone", "model": "test_vit", "image_size": 64}
    source = build_backbone(OmegaConf.create(spec), 3)
    path = official.saved(timm_state(source), tmp_path)
    same = build_objective(config_with(spec), read_start(str(path), "backbone", None))
    check_features(same.backbone, source, 64)
    other = build_objective(config_with(spec | {"image_size": 96}), read_start(str(path), "backbone", None))
    check_features(other.backbone, source, 96)


def timm_state(source: Backbone) -> dict[str, Tensor]:
    return {key.removeprefix("model."): value for key, value in source.state_dict().items()}


@pytest.mark.parametrize("name", members("objective"))
def test_every_teacher_starts_as_a_copy_of_what_was_loaded(name: str, tmp_path: Path) -> None:
    config, _ = small_objective(name)
    source = build_backbone(config.backbone, 5)
    torch.save({"state_dict": {f"objective.backbone.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "x")
    objective = build_objective(config, read_start(str(tmp_path / "x"), "backbone", None))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in objective.backbone.state_dict().items())
    if isinstance(objective, HasTeacher):
        for teacher, student in objective.teacher_student_pairs():
            assert all(torch.equal(v, student.state_dict()[k]) for k, v in teacher.state_dict().items())
        teacher = objective.teacher_student_pairs()[0][0]
        images = torch.rand(4, 3, 16, 16)
        with torch.no_grad():
            assert torch.equal(teacher.eval()(images), objective.backbone.eval()(images))


def run_of(folder: Path, *overrides: str, stop_at: int | None = None, objective: str = "moco_v2") -> Run:
    """A run in this process, to its end, or stopped in the middle of a step."""
    config = small_run(objective, folder, "data=digits", "max_steps=6", "num_workers=0", "plan=null", *overrides)
    resolved = open_run(config)
    run = build_run(config, resolved)
    if stop_at is not None:
        run.trainer.callbacks.insert(0, CtrlC(stop_at))  # type: ignore[attr-defined]
        with pytest.raises(Interrupted):
            run.fit(resolved)
    else:
        run.fit(resolved)
    run.close()
    return run


def state_of(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from random weights."""
    folder = tmp_path_factory.mktemp("first")
    run_of(folder)
    return folder


def test_a_run_that_started_from_weights_goes_on_bit_for_bit_when_the_file_is_gone(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.ckpt"
    file.write_bytes((first / "checkpoints" / "last.ckpt").read_bytes())
    run_of(tmp_path / "straight", f"weights={file}")
    assert f"starts from weights={file} (own run: the objective's backbone)" in capsys.readouterr().out
    run_of(tmp_path / "stopped", f"weights={file}", stop_at=3)
    file.unlink()
    capsys.readouterr()
    run_of(tmp_path / "stopped", f"weights={file}")
    assert "starts from" not in capsys.readouterr().out
    straight, stopped = state_of(tmp_path / "straight"), state_of(tmp_path / "stopped")
    assert [k for k, v in straight["state_dict"].items() if not torch.equal(v, stopped["state_dict"][k])] == []
    assert straight["weights"] == stopped["weights"]
    sha256 = read_checkpoint(first / "checkpoints" / "last.ckpt").sha256
    assert straight["weights"]["sha256"] == straight["config"]["weights_sha256"] == sha256
    assert straight["weights"]["origin"] == straight["config"]["weights"] == str(file)
    config = OmegaConf.load(tmp_path / "stopped" / "config.yaml")
    assert (config.weights, config.weights_sha256) == (str(file), sha256)
    assert stopped["config"]["weights_sha256"] == sha256
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("straight", "stopped")]
    assert metrics[0] == metrics[1]


def test_the_copy_in_the_run_folder_gives_the_features_of_the_start(first: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", f"weights={first}")
    like = run.module.objective.backbone
    checkpoint = read_checkpoint(run.checkpoint)
    start = starting_backbone(checkpoint, like)
    source = {
        key.removeprefix("objective.backbone."): value
        for key, value in state_of(first)["state_dict"].items()
        if key.startswith("objective.backbone.")
    }
    assert start is not None
    assert all(torch.equal(value, source[key]) for key, value in start.state_dict().items())
    assert not all(torch.equal(value, source[key]) for key, value in like.state_dict().items())
    assert checkpoint.notes == []
    copied = tmp_path / "run" / "checkpoints" / COPY
    copied.write_bytes(copied.read_bytes()[:-4] + b"abcd")
    assert starting_backbone(checkpoint, like) is None
    assert "is another file than the run wrote" in checkpoint.notes[0]
    copied.unlink()
    assert starting_backbone(checkpoint, like) is None
    assert "is gone" in checkpoint.notes[1]


def test_all_takes_heads_teacher_and_queue_and_backbone_leaves_them_anew(first: Path, tmp_path: Path) -> None:
    config = small_run("moco_v2", tmp_path / "x", "data=digits")
    saved = {k.removeprefix("objective."): v for k, v in state_of(first)["state_dict"].items()}
    everything = build_objective(config, read_start(str(first), "all", None)).state_dict()
    assert all(torch.equal(value, everything[key]) for key, value in saved.items() if key in everything)
    backbone = build_objective(config, read_start(str(first), "backbone", None)).state_dict()
    fresh = build_objective(config).state_dict()
    heads = [key for key in fresh if not key.startswith(("backbone.", "momentum_backbone."))]
    assert heads
    assert all(torch.equal(backbone[key], fresh[key]) for key in heads)
    other = small_run("simclr", tmp_path / "x", "data=digits")
    with pytest.raises(UserError, match=r"weights=.* does not fit the objective: .*unknown queue"):
        build_objective(other, read_start(str(first), "all", None))
    path, _ = written("torchvision", tmp_path)
    with pytest.raises(UserError, match=r"weights_of=all: .* is no run of this package \(plain state dict\)"):
        build_objective(config_with(RESNET), read_start(str(path), "all", None))


def test_another_backbone_than_the_run_has_is_told_by_its_keys(first: Path, tmp_path: Path) -> None:
    config = small_run("moco_v2", tmp_path / "x", "data=digits", "backbone.depth=10")
    before = state_of(first)["config"]["backbone"]["depth"]
    if before == 10:
        config.backbone.depth = 18
    with pytest.raises(UserError, match=rf"another backbone: backbone.depth=\d+, the run has {before}"):
        build_objective(config, read_start(str(first), "backbone", None))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("weights=nowhere",), "no such file or folder of a run; timm:NAME, torchvision:NAME and hf:ORG/NAME"),
        (("weights=.",), "no run: it has no checkpoints/last.ckpt"),
        (("weights=timm:vit_smal_patch16_224",), "timm has no such model; did you mean vit_small_patch16_224"),
        (("weights=timm:test_vit.nothing",), "timm has no such weights; did you mean test_vit.r160_in1k"),
        (("weights=torchvision:resnet19",), "torchvision has no such classification model; did you mean resnet1"),
        (("weights=torchvision:resnet18:V9",), "resnet18 has IMAGENET1K_V1"),
        (("weights=hf:nobody",), "must be hf:ORG/NAME"),
        (("weights_of=all",), "weights_of=all: weights=null"),
        ((f"weights_sha256={'0' * 64}",), "weights=null"),
    ],
)
def test_a_mistake_is_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    config = small_run("simclr", tmp_path / "run", "data=digits", "plan=null")
    config.update(dict(each.split("=", 1) for each in overrides))
    with pytest.raises(UserError) as caught:
        build_run(config, open_run(config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_hash_is_refused(first: Path) -> None:
    with pytest.raises(UserError, match=r"weights_sha256=0+: weights=.* has [0-9a-f]{64}"):
        read_start(str(first), "backbone", "0" * 64)


def test_a_run_is_not_gone_on_with_from_other_weights(first: Path) -> None:
    before = state_of(first)["config"]
    with pytest.raises(UserError, match="holds a run with another weights"):
        check_same(before, before | {"weights": "timm:test_vit"})
    check_same(before | {"weights_sha256": "0" * 64}, before)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return without_network(monkeypatch, tmp_path)


@pytest.mark.parametrize("origin", ["timm:test_vit", "torchvision:resnet18", "hf:timm/test_vit.r160_in1k"])
def test_without_a_network_weights_of_a_library_are_one_line_at_once(origin: str, offline: Path) -> None:
    timm.list_pretrained("test_vit")
    began = time.monotonic()
    with pytest.raises(UserError, match=f"weights={origin}: not in {offline}.*, and this machine is offline"):
        read_start(origin, "backbone", None)
    assert time.monotonic() - began < 2.5


def test_weights_of_libraries_come_from_their_caches(offline: Path) -> None:
    source = timm.create_model("test_vit", num_classes=1000)
    file = hub_cache(offline, "timm/test_vit.r160_in1k", source)
    spec = {"_target_": "unlabeled.backbones.timm.TimmBackbone", "model": "test_vit", "image_size": 160}
    source.reset_classifier(0)
    for origin in ("timm:test_vit", "hf:timm/test_vit.r160_in1k"):
        start = read_start(origin, "backbone", None)
        objective = build_objective(config_with(spec), start)
        check_features(objective.backbone, source, 160)
        assert start.record()["origin"] == origin
        assert start.checkpoint.sha256 == read_checkpoint(file).sha256
    network = torchvision.models.resnet18()
    torch_cache(offline, "resnet18-f37072fd.pth", network)
    resnet = RESNET | {"depth": 18, "width": 1.0}
    objective = build_objective(config_with(resnet), read_start("torchvision:resnet18", "backbone", None))
    network.fc = nn.Identity()
    check_features(objective.backbone, network)


def test_the_report_has_a_row_of_the_start_when_the_file_is_gone(first: Path, tmp_path: Path) -> None:
    from unlabeled.commands.build.evaluation import build_evaluation
    from unlabeled.evaluation.evaluate import evaluate

    file = tmp_path / "weights.ckpt"
    file.write_bytes((first / "checkpoints" / "last.ckpt").read_bytes())
    run = run_of(tmp_path / "run", f"weights={file}")
    file.unlink()
    config = small_run("moco_v2", tmp_path / "run", "data=digits", "num_workers=0", "probe=knn", "cache_gib=0")
    evaluation = build_evaluation(config, None, "cpu")
    rows = evaluate(evaluation, read_checkpoint(run.checkpoint), tmp_path / "report", "command", lambda line: None)
    found = {row.features: row.top1 for row in rows if row.protocol.startswith("knn/")}
    assert list(found) == ["pretrained", "start", "random init", "raw pixels"]
    plain = build_evaluation(config, None, "cpu")
    own = evaluate(
        plain, read_checkpoint(first / "checkpoints" / "last.ckpt"), tmp_path / "own", "c", lambda line: None
    )
    assert {row.top1 for row in own if row.features == "pretrained"} == {
        row.top1 for row in rows if row.features == "start"
    }
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["provenance"]["checkpoint"]["started_from"]["origin"] == str(file)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "pretrained − start" in page
    assert read_checkpoint(first / "checkpoints" / "last.ckpt").sha256 in page


def test_the_plan_warns_above_a_tenth_of_the_usual_rate(first: Path, tmp_path: Path) -> None:
    from unlabeled.training.plan.plan import make_plan

    name = "a lower learning rate from weights that exist"
    for rate, passed in ((0.03, False), (0.003, True)):
        config = small_run("moco_v2", tmp_path / "x", "data=digits", f"weights={first}", f"optimizer.lr={rate}")
        run = build_run(config, open_run(config))
        plan = make_plan(run.module, run.data, 1, "cpu", "32-true", 0, "for a test")
        run.close()
        (check,) = [each for each in plan.checks if each.name == name]
        assert check.passed == passed
        assert "give optimizer.lr=0.003" in check.remedy
    config = small_run("moco_v2", tmp_path / "y", "data=digits")
    run = build_run(config, open_run(config))
    run.close()
    assert name not in [c.name for c in make_plan(run.module, run.data, 1, "cpu", "32-true", 0, "no").checks]


def test_a_killed_run_goes_on_bit_for_bit_without_the_file(first: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.ckpt"
    file.write_bytes((first / "checkpoints" / "last.ckpt").read_bytes())
    overrides = ["data=digits", "max_steps=6", "num_workers=0", "plan=null", f"weights={file}", "weights_of=all"]
    overrides.append("checkpoint_every_n_steps=2")
    straight, config = (small_run("moco_v2", tmp_path / name, *overrides) for name in ("straight", "killed"))
    assert start(straight).code == 0
    assert start(config, Killed(1, "on_train_batch_start")).code == -signal.SIGKILL  # before its first checkpoint
    assert start(config, Killed(4, "on_before_optimizer_step")).code == -signal.SIGKILL
    file.unlink()
    ended = start(config)
    assert ended.code == 0, ended.output
    ours, theirs = state_of(tmp_path / "killed"), state_of(tmp_path / "straight")
    assert [k for k, v in theirs["state_dict"].items() if not torch.equal(v, ours["state_dict"][k])] == []
    assert ours["weights"] == theirs["weights"]
    assert ours["weights"]["of"] == "all"


def test_heads_and_teacher_of_a_run_go_on_at_another_size_with_interpolated_positions() -> None:
    """As DINOv2 ends at a high resolution: 4 × 4 patches become 6 × 6 in the backbone and in its teacher."""
    run, larger = make_objective(), make_objective(backbone=vit(image_size=24))
    content = {"state_dict": {f"objective.{key}": value for key, value in run.state_dict().items()}}
    with pytest.raises(UserError, match=r"backbone\.pos_embed has shape \[1, 17, 8\] instead of \[1, 37, 8\]"):
        load_objective(checkpoint_of(content, Path("run"), ""), larger)
    content["state_dict"]["objective.note"] = "a text of somebody's"
    load_objective(checkpoint_of(content, Path("run"), ""), larger, any_size=True)
    found, given = larger.state_dict(), run.state_dict()
    for name in ("backbone.pos_embed", "teacher_backbone.pos_embed"):
        plane = given[name][:, 1:].mT.reshape(1, 8, 4, 4).float()
        fitted = torch.nn.functional.interpolate(plane, (6, 6), mode="bicubic").flatten(2).mT
        torch.testing.assert_close(found[name][:, 1:].float(), fitted)
        assert torch.equal(found[name][:, :1], given[name][:, :1])
    assert all(torch.equal(found[key], given[key]) for key in given if "pos_embed" not in key)

"""Every tensor of a checkpoint finds its place in the backbone, or nothing is loaded and each misfit is named."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.errors import UserError
from unlabeled.weights import load_backbone, read_checkpoint
from unlabeled.weights.load import checkpoint_of

State = dict[str, Any]
BACKBONE = "state_dict.objective.backbone"


def thin(seed: int = 0) -> ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet(10, 0.125, "cifar")
        nn.init.uniform_(network.bn1.running_mean)  # type: ignore[arg-type]
    return network


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "file.pt")
    return folder / "file.pt"


def own_layout(network: nn.Module) -> State:
    """What a run writes: the backbone among the tensors of the method, and what the run was."""
    tensors = {f"objective.backbone.{key}": value for key, value in network.state_dict().items()}
    others = {"objective.projector.0.weight": torch.ones(3, 3), "objective.momentum_encoder.backbone.x": torch.ones(1)}
    progress = {"step": 5, "total_steps": 9, "steps_per_epoch": 3, "seed": 0}
    return {"state_dict": others | tensors, "config": {"seed": 0}, "progress": progress, "epoch": 1}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refusal(path: Path, backbone: ResNet) -> str:
    """The error's text, after making sure that it is one line and that nothing was loaded."""
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_backbone(path, backbone)
    assert equal(backbone.state_dict(), before)
    message = str(caught.value)
    assert message.startswith(f"checkpoint={path}")
    assert message.isprintable()  # one line, and no colours of a terminal
    return message


def test_a_checkpoint_of_a_run_comes_back_tensor_by_tensor_with_what_it_says_of_itself(tmp_path: Path) -> None:
    source = thin(0)
    path = saved(own_layout(source), tmp_path)
    target = thin(1)
    assert not equal(target.state_dict(), source.state_dict())
    assert load_backbone(path, target) is target
    assert equal(target.state_dict(), source.state_dict())
    checkpoint = read_checkpoint(path)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.config == {"seed": 0}
    assert checkpoint.progress == {"step": 5, "total_steps": 9, "steps_per_epoch": 3, "seed": 0}
    assert equal(load_backbone(checkpoint, thin(2)).state_dict(), source.state_dict())


def test_loading_copies_so_that_training_on_does_not_write_to_the_file(tmp_path: Path) -> None:
    path = saved(own_layout(thin(0)), tmp_path)
    before = path.read_bytes()
    target = load_backbone(path, thin(1))
    with torch.no_grad():
        target.conv1.weight.zero_()  # type: ignore[union-attr, operator]
    assert path.read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_of_torchvision_loads_without_its_classifier_in_both_formats_of_torch(
    zipped: bool, tmp_path: Path
) -> None:
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    ours = load_backbone(tmp_path / "file.pt", ResNet(18, 1.0, "imagenet"))
    expected = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert equal(ours.state_dict(), expected)
    checkpoint = read_checkpoint(tmp_path / "file.pt")
    assert (checkpoint.config, checkpoint.progress) == (None, {})


def test_a_state_dict_below_the_prefix_of_a_backbone_loads(tmp_path: Path) -> None:
    source = thin(0)
    tensors = {f"backbone.{key}": value for key, value in source.state_dict().items()} | {"fc.weight": torch.ones(1)}
    assert equal(load_backbone(saved(tensors, tmp_path), thin(1)).state_dict(), source.state_dict())


def drop(state: State) -> None:
    del state["objective.backbone.layer1.0.bn1.weight"]


def rename(state: State) -> None:
    state["objective.backbone.layer1.0.norm.weight"] = state.pop("objective.backbone.layer1.0.bn1.weight")


def reshape(state: State) -> None:
    state["objective.backbone.conv1.weight"] = torch.ones(8, 3, 7, 7)


def several(state: State) -> None:
    drop(state)
    reshape(state)
    state["objective.backbone.extra"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (drop, ["missing layer1.0.bn1.weight"]),
        (rename, ["missing layer1.0.bn1.weight", f"unknown {BACKBONE}.layer1.0.norm.weight"]),
        (
            reshape,
            [f"{BACKBONE}.conv1.weight has shape [8, 3, 7, 7] instead of [8, 3, 3, 3]", "give backbone.stem=imagenet"],
        ),
        (
            several,
            [
                "missing layer1.0.bn1.weight",
                f"{BACKBONE}.conv1.weight has shape [8, 3, 7, 7] instead of [8, 3, 3, 3]",
                f"unknown {BACKBONE}.extra",
                "give backbone.stem=imagenet",
            ],
        ),
    ],
)
def test_each_misfit_is_named_and_nothing_is_loaded(
    change: Callable[[State], None], problems: list[str], tmp_path: Path
) -> None:
    content = own_layout(thin(0))
    change(content["state_dict"])
    path = saved(content, tmp_path)
    expected = f"checkpoint={path} (own run) does not fit the backbone: {'; '.join(problems)}"
    assert refusal(path, thin(1)) == expected


def test_another_depth_names_every_key_that_is_left_over(tmp_path: Path) -> None:
    with torch.device("meta"):
        deeper = set(ResNet(18, 0.125, "cifar").state_dict()) - set(thin().state_dict())
    state = {f"objective.backbone.{key}": value for key, value in thin(0).state_dict().items()}
    state |= {f"objective.backbone.{key}": torch.ones(1) for key in deeper}
    message = refusal(saved({"state_dict": state}, tmp_path), thin(1))
    assert len(deeper) == 4 * 12
    assert all(f"unknown {BACKBONE}.{key}" in message for key in deeper)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.ckpt", thin()).endswith("no.ckpt: no such file")
    assert refusal(tmp_path, thin()).endswith(": no such file")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half a file"])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    assert "cannot be read as tensors and plain values (" in refusal(tmp_path / "file.pt", thin())


def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = saved(own_layout(thin(0)), tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "cannot be read as tensors and plain values (" in refusal(path, thin(1))


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {"state_dict": {}}, {"state_dict": [1]}])
def test_a_file_without_tensors_by_name_is_refused(content: Any, tmp_path: Path) -> None:
    assert refusal(saved(content, tmp_path), thin()).endswith("file.pt: holds no state_dict")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight.to(torch.int8), "holds int8 instead of float32"),
        (lambda weight: weight.to(torch.complex64), "holds complex64 instead of float32"),
        (lambda weight: weight.to(torch.bool), "holds bool instead of float32"),
        (lambda weight: weight.to_sparse(), "holds float32 sparse instead of float32"),
        (lambda weight: weight.to("meta"), "holds no values, float32 instead of float32"),
    ],
)
def test_numbers_of_another_kind_than_floats_are_refused_and_named(
    tmp_path: Path, change: Callable[[Tensor], Tensor], words: str
) -> None:
    content = own_layout(thin(0))
    name = "objective.backbone.layer1.0.conv1.weight"
    content["state_dict"][name] = change(content["state_dict"][name])
    assert f"state_dict.{name} {words}" in refusal(saved(content, tmp_path), thin(1))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_are_taken(tmp_path: Path, kind: torch.dtype) -> None:
    content, source = own_layout(thin(0)), thin(0)
    content["state_dict"] = {k: v.to(kind) if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    loaded = load_backbone(saved(content, tmp_path), thin(1))
    assert torch.allclose(loaded.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"], rtol=1e-2)


def test_a_flipped_bit_of_a_weight_is_noticed_by_whoever_reads_it(tmp_path: Path) -> None:
    source = thin(0)
    path = saved(own_layout(source), tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(source.state_dict()["conv1.weight"].numpy().tobytes()[:64])
    content[place] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch itself does not notice
    assert "damaged" in refusal(path, thin(1))
    with pytest.raises(UserError, match=r"damaged \(.* is not what was written\); copy it again"):
        read_checkpoint(path)


def test_a_list_that_holds_itself_is_no_checkpoint(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    path = saved({"state_dict": thin().state_dict(), "x": endless}, tmp_path)
    assert "is nested too deeply" in refusal(path, thin())


def test_weights_of_a_network_that_computes_something_else_with_the_same_names_are_refused(tmp_path: Path) -> None:
    googlenet = torchvision.models.googlenet(aux_logits=False, init_weights=False)
    path = saved(googlenet.state_dict(), tmp_path)
    with pytest.raises(UserError, match=r"published weights of GoogLeNet are for images that torchvision scales"):
        load_backbone(path, TorchvisionBackbone("googlenet"))
    smoothed = checkpoint_of(dict(thin().state_dict()), Path("timm:resnetblur18.x"), "0" * 64)
    with pytest.raises(UserError, match=r"smooths maps before each stride.*backbone.model=resnetblur18"):
        load_backbone(smoothed, thin())

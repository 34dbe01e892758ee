"""RegNetY's tensors find each other under the names of timm, torchvision, ClassyVision and VISSL."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.regnet import BlockParams
from torchvision.models.regnet import RegNet as TorchvisionRegNet

from unlabeled.backbones.regnet import RegNetY
from unlabeled.weights.names.regnet import from_timm, from_vissl, renamed_to_timm, to_timm

PARAMETERS = {"depth": 16, "w_0": 48, "w_a": 27.89, "w_m": 2.09, "group_width": 8}  # RegNetY-400MF


def randomised(network: nn.Module) -> nn.Module:
    """BatchNorms that are no identity, or a wrong name among them would go unseen."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def ours() -> RegNetY:
    network = randomised(RegNetY(depth=16, w_0=48, w_a=27.89, w_m=2.09, group_width=8))
    assert isinstance(network, RegNetY)
    return network


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_our_tensors_under_timms_names_give_equal_features_there() -> None:
    network = ours()
    theirs = timm.create_model("regnety_004", num_classes=0).eval()
    theirs.load_state_dict(renamed_to_timm(network.state_dict()))
    assert torch.allclose(theirs(images()), network(images()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_timms_tensors_under_our_names_give_equal_features_here_and_the_classifier_has_no_name() -> None:
    theirs = randomised(timm.create_model("regnety_004"))
    names = {name: from_timm(name) for name in theirs.state_dict()}
    assert [name for name, renamed in names.items() if renamed is None] == ["head.fc.weight", "head.fc.bias"]
    network = ours()
    state = theirs.state_dict()
    network.load_state_dict({renamed: state[name] for name, renamed in names.items() if renamed})
    features = theirs.forward_head(theirs.forward_features(images()), pre_logits=True)  # type: ignore[operator]
    assert torch.allclose(features, network.eval()(images()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_our_names_are_torchvisions() -> None:
    network = ours()
    theirs = TorchvisionRegNet(BlockParams.from_init_params(**PARAMETERS, se_ratio=0.25))
    theirs.fc = nn.Identity()
    theirs.load_state_dict(network.state_dict())
    assert torch.allclose(theirs.eval()(images()), network(images()), rtol=0, atol=1e-5)


def test_to_timm_and_back_is_the_identity_on_every_name() -> None:
    for name in ours().state_dict():
        renamed = to_timm(name)
        assert renamed is not None
        assert from_timm(renamed) == name


@pytest.mark.parametrize(
    ("theirs", "renamed"),
    [
        ("_feature_blocks.conv1.stem.0.weight", "stem.0.weight"),
        ("_feature_blocks.conv1.stem.1.running_var", "stem.1.running_var"),
        ("_feature_blocks.res2.block1-0.proj.weight", "trunk_output.block1.block1-0.proj.0.weight"),
        ("_feature_blocks.res2.block1-0.bn.bias", "trunk_output.block1.block1-0.proj.1.bias"),
        ("_feature_blocks.res4.block3-11.f.a.0.weight", "trunk_output.block3.block3-11.f.a.0.weight"),
        ("_feature_blocks.res4.block3-1.f.b.1.running_mean", "trunk_output.block3.block3-1.f.b.1.running_mean"),
        ("_feature_blocks.res5.block4-0.f.se.excitation.0.bias", "trunk_output.block4.block4-0.f.se.fc1.bias"),
        ("_feature_blocks.res5.block4-0.f.se.excitation.2.weight", "trunk_output.block4.block4-0.f.se.fc2.weight"),
        ("_feature_blocks.res3.block2-4.f.c.weight", "trunk_output.block2.block2-4.f.c.0.weight"),
        ("_feature_blocks.res3.block2-4.f.final_bn.weight", "trunk_output.block2.block2-4.f.c.1.weight"),
        ("_feature_blocks.res3.block2-part1.block2-4.f.final_bn.bias", "trunk_output.block2.block2-4.f.c.1.bias"),
        ("stem.stem.1.weight", "stem.1.weight"),
        ("trunk_output.block2.block2-4.f.final_bn.weight", "trunk_output.block2.block2-4.f.c.1.weight"),
        ("_feature_blocks.res3.block2-4.f.d.weight", None),
        ("0.clf.0.weight", None),
    ],
)
def test_vissls_and_classy_visions_names_become_ours(theirs: str, renamed: str | None) -> None:
    assert from_vissl(theirs) == renamed


def test_a_name_that_regnety_does_not_have_is_refused() -> None:
    assert to_timm("fc.weight") is None
    with pytest.raises(ValueError, match=r"fc\.weight"):
        renamed_to_timm({"stem.0.weight": torch.ones(1), "fc.weight": torch.ones(1)})

"""Kinds of features: each equals what it says it is, computed from the network's own parts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unlabeled.backbones.regnet import RegNetY
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.backbones.wide_resnet import WideResNet
from unlabeled.errors import UserError
from unlabeled.objective import Backbone


def small(name: str) -> Backbone:
    torch.manual_seed(0)
    made: dict[str, Callable[[], Backbone]] = {
        "vit": lambda: ViT(16, 4, 24, 5, 2, position="learned"),
        "vit_gap": lambda: ViT(16, 4, 24, 5, 2, pooling="gap"),
        "resnet": lambda: ResNet(18, 0.125, "cifar"),
        "regnet": lambda: RegNetY(4, 16, 27.89, 2.65, 8, 0.25, "nearest"),
        "wide_resnet": lambda: WideResNet(10, 1, 0.1, 0.1),
    }
    return made[name]().eval()


@pytest.mark.parametrize("name", ["vit", "vit_gap", "resnet", "regnet", "wide_resnet"])
def test_last_is_what_forward_gives_and_one_pass_gives_the_same_as_many(name: str) -> None:
    network, images = small(name), torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        every = network.features(images, network.kinds)
        assert list(every) == list(network.kinds)
        assert torch.equal(every["last"], network(images))
        for kind in network.kinds:
            assert torch.equal(network.features(images, [kind])[kind], every[kind])


def test_a_vits_last_four_are_class_tokens_of_its_last_blocks_through_the_last_norm() -> None:
    network, images = small("vit"), torch.rand(2, 3, 16, 16)
    seen: list[Tensor] = []
    assert isinstance(network, ViT)
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        found = network.features(images, ["last4", "cls", "patches", "tokens"])
        wanted = torch.cat([network.norm(each)[:, 0] for each in seen[1:]], 1)
        tokens = network.norm(seen[-1])
    assert torch.equal(found["last4"], wanted)
    assert found["last4"].shape == (2, 4 * 24)
    assert torch.equal(found["cls"], tokens[:, 0])
    assert torch.equal(found["tokens"], tokens[:, 1:])
    assert torch.allclose(found["patches"], tokens[:, 1:].sum(1) / 16)


def test_a_resnets_last_four_are_the_means_of_its_stages_and_tokens_average_to_last() -> None:
    network, images = small("resnet"), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found = network.features(images, ["last", "last4", "tokens"])
    assert found["tokens"].shape == (2, 2 * 2, 64)
    assert torch.allclose(found["tokens"].mean(1), found["last"], atol=1e-6)
    assert found["last4"].shape == (2, 8 + 16 + 32 + 64)
    assert torch.allclose(found["last4"][:, -64:], found["last"])


@pytest.mark.parametrize("name", ["vit", "vit_gap", "resnet", "regnet", "wide_resnet"])
def test_a_map_is_the_tokens_in_their_places_at_any_size(name: str) -> None:
    network, images = small(name), torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        found = network.features(images, ["map", "tokens"])
    height, width = found["map"].shape[2:]
    assert height * 2 == width * 3
    assert torch.equal(found["map"].flatten(2).transpose(1, 2), found["tokens"])


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timms_networks_have_maps_whose_mean_is_what_they_pool(model: str) -> None:
    size = 224 if "224" in model else 64
    network = TimmBackbone(model).eval()
    with torch.no_grad():
        found = network.features(torch.rand(1, 3, size, size), ["last", "map"])
    assert found["map"].shape[:2] == (1, network.num_features)
    assert found["map"].shape[2] == found["map"].shape[3] == size // (16 if "vit" in model else 32)
    if model in ("resnet18", "swin_tiny_patch4_window7_224"):  # the others normalise what is pooled, or pool a token
        assert torch.allclose(found["map"].mean(dim=(2, 3)), found["last"], atol=1e-5)


@pytest.mark.parametrize("model", ["resnet18", "densenet121", "swin_t", "vit_b_32", "mobilenet_v2"])
def test_torchvisions_networks_have_maps_that_are_pooled_to_their_features(model: str) -> None:
    network = TorchvisionBackbone(model, 64 if model == "vit_b_32" else None).eval()
    with torch.no_grad():
        found = network.features(torch.rand(1, 3, 64, 64), ["last", "map"])
    assert found["map"].shape == (1, network.num_features, 2, 2)
    dense = found["map"].relu() if model == "densenet121" else found["map"]
    if model != "vit_b_32":
        assert torch.allclose(dense.mean(dim=(2, 3)), found["last"], atol=1e-5)


def test_a_kind_that_an_architecture_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(UserError, match="features=cls: ResNet has no such features; allowed: last, last4, tokens, map"):
        small("resnet").features(torch.rand(1, 3, 16, 16), ["cls"])

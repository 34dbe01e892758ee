import pytest
import torch
from torch import Tensor, nn

from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.representation.layers import Layers, pool_positions


def images(size: int = 16) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def taken(backbone: Backbone, batch: Tensor) -> tuple[list[str], list[Tensor]]:
    layers = Layers(backbone)
    with torch.no_grad(), layers.recording():
        backbone.eval()(batch)
    return layers.names, layers.taken()


def test_layers_of_a_resnet_are_the_means_of_its_blocks_maps() -> None:
    network = ResNet(10, 0.25, "cifar").eval()
    names, found = taken(network, images())
    assert names == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    with torch.no_grad():
        x = network.relu(network.bn1(network.conv1(images())))
        for stage, each in zip((network.layer1, network.layer2, network.layer3, network.layer4), found, strict=True):
            x = stage(x)
            torch.testing.assert_close(each, x.sum((2, 3)) / x[0, 0].numel())


def test_layers_of_a_vit_are_the_means_of_its_patches_without_the_class_token() -> None:
    network = ViT(16, 4, 24, 3, 2).eval()
    names, found = taken(network, images())
    assert names == ["blocks.0", "blocks.1", "blocks.2"]
    with torch.no_grad():
        x = network._embed(images())
        for block, each in zip(network.blocks, found, strict=True):
            x = block(x)
            torch.testing.assert_close(each, sum(x[:, 1 + patch] for patch in range(16)) / 16)


@pytest.mark.parametrize(
    ("backbone", "first", "last", "count"),
    [
        (lambda: TimmBackbone("resnet18"), "layer1.0", "layer4.1", 8),
        (lambda: TimmBackbone("vit_tiny_patch16_224", 32), "blocks.0", "blocks.11", 12),
        (lambda: TimmBackbone("mobilenetv3_small_050"), "blocks.0.0", "blocks.5.0", 12),
        (lambda: TimmBackbone("convnext_atto"), "stages.0", "stages.3", 4),
        (lambda: TorchvisionBackbone("regnet_y_400mf"), "trunk_output.block1", "trunk_output.block4", 4),
        (lambda: TorchvisionBackbone("mobilenet_v3_small"), "features.0", "features.12", 13),
    ],
)
def test_models_from_elsewhere_have_their_blocks_or_stages_for_layers(
    backbone: type[Backbone], first: str, last: str, count: int
) -> None:
    names, found = taken(backbone(), images(32))
    assert (names[0], names[-1], len(names)) == (first, last, count)
    assert all(each.shape[0] == 3 and each.ndim == 2 for each in found)


def test_positions_are_averaged_wherever_the_channels_stand() -> None:
    maps = torch.rand(2, 5, 4, 4)
    torch.testing.assert_close(pool_positions(maps, 0), maps.mean((2, 3)))
    torch.testing.assert_close(pool_positions(maps.permute(0, 2, 3, 1), 0), maps.mean((2, 3)))
    tokens = torch.rand(2, 7, 5)
    torch.testing.assert_close(pool_positions(tokens, 2), tokens[:, 2:].mean(1))


def test_afterwards_no_hook_is_left_and_one_layer_is_refused() -> None:
    network = ResNet(10, 0.25, "cifar")
    taken(network, images())
    assert not any(module._forward_hooks for module in network.modules())

    class Flat(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    with pytest.raises(UserError, match="Flat has no blocks"):
        Layers(Flat())

"""Maps smaller than a stride, on a CPU in bfloat16: images of 16 pixels after an ImageNet stem, for example."""

from typing import Any

import pytest
import torch
from torch import nn

from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.small_maps import SmallMapConv, guard_small_maps
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.backbones.wide_resnet import WideResNet


def poison() -> None:
    """Leaves NaN in freed memory, which an unset gradient would show."""
    kept = [torch.full((2**power,), float("nan")) for power in range(6, 23) for _ in range(4)]
    del kept


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "side"), [(3, 2, 1, 1), (7, 2, 3, 1), (3, 3, 1, 2), (3, 4, 1, 3)]
)
def test_the_gradient_of_a_weight_is_that_of_float64(kernel: int, stride: int, padding: int, side: int) -> None:
    convolution = nn.Conv2d(64, 128, kernel, stride, padding)
    guard_small_maps(convolution)
    images = torch.randn(64, 64, side, side)
    literal = nn.Conv2d(64, 128, kernel, stride, padding).double()
    literal.load_state_dict(convolution.state_dict())
    literal(images.double()).square().sum().backward()
    for _ in range(3):
        convolution.zero_grad()
        poison()
        with torch.autocast("cpu", torch.bfloat16):
            made = convolution(images)
        made.float().square().sum().backward()
        assert convolution.weight.grad is not None
        assert literal.weight.grad is not None
        torch.testing.assert_close(convolution.weight.grad.double(), literal.weight.grad, rtol=1e-3, atol=1e-2)


def strided(network: nn.Module) -> list[type[nn.Module]]:
    return [
        type(module)
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and max(module.kernel_size) > 1
    ]


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet(18, 0.125, "imagenet"),
        lambda: WideResNet(10, 1, 0.1, 0.1),
        lambda: TimmBackbone("resnet18"),
        lambda: TorchvisionBackbone("resnet18"),
    ],
)
def test_every_strided_convolution_of_a_backbone_is_guarded(build: Any) -> None:
    with torch.device("meta"):
        found = strided(build())
    assert found
    assert set(found) == {SmallMapConv}


def test_larger_maps_stay_in_bfloat16_and_names_stay() -> None:
    network = ResNet(18, 0.125, "imagenet")
    assert network.state_dict().keys() == ResNet(18, 0.125, "imagenet", padding="end").state_dict().keys()
    with torch.autocast("cpu", torch.bfloat16):
        assert network.conv1(torch.randn(2, 3, 8, 8)).dtype == torch.bfloat16
        assert network.conv1(torch.randn(2, 3, 1, 1)).dtype == torch.float32

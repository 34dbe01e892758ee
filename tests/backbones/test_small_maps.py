"""Maps smaller than a stride, on a CPU in bfloat16: images of 16 pixels after an ImageNet stem, for example."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.small import small_run
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.small_maps import SmallMapConv, guard_small_maps
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.objective import Backbone


def poison() -> None:
    """Leaves NaN in freed memory, which an unset gradient would show."""
    kept = [torch.full((2**power,), float("nan")) for power in range(6, 23) for _ in range(4)]
    del kept


class OneConvolution(Backbone):
    """A network of a single convolution."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.channels, self.num_features = 64, 128
        self.convolution = nn.Conv2d(64, 128, kernel, stride, padding)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.convolution(images)
        return made


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "side"), [(3, 2, 1, 1), (7, 2, 3, 1), (3, 3, 1, 2), (3, 4, 1, 3)]
)
def test_the_gradient_of_a_weight_is_that_of_float64(kernel: int, stride: int, padding: int, side: int) -> None:
    network = OneConvolution(kernel, stride, padding)
    literal = OneConvolution(kernel, stride, padding).double()
    literal.load_state_dict(network.state_dict())
    guard_small_maps(network, side)
    images = torch.randn(64, 64, side, side)
    literal(images.double()).square().sum().backward()
    for _ in range(3):
        network.zero_grad()
        poison()
        with torch.autocast("cpu", torch.bfloat16):
            made = network(images)
        made.float().square().sum().backward()
        ours, theirs = network.convolution.weight.grad, literal.convolution.weight.grad
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-2)


def guarded(network: Backbone, side: int) -> int:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    guard_small_maps(network, side)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    return sum(type(module) is SmallMapConv for module in network.modules())


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet(18, 0.125, "imagenet"),
        lambda: TimmBackbone("resnet18"),
        lambda: TorchvisionBackbone("resnet18"),
    ],
)
def test_the_convolutions_whose_maps_are_too_small_are_found_and_no_others(build: Any) -> None:
    assert [guarded(build(), side) for side in (16, 8, 64)] == [1, 2, 0]


def test_a_run_in_bfloat16_on_a_cpu_is_guarded(tmp_path: Path) -> None:
    given = ("data=digits", "backbone=resnet_thin", "backbone.stem=imagenet")
    for precision in ("bf16-mixed", "32-true"):
        config = small_run("simclr", tmp_path / precision, *given, f"trainer.precision={precision}")
        network = build_run(config, open_run(config)).module.objective.backbone
        found = any(type(module) is SmallMapConv for module in network.modules())
        assert found == (precision == "bf16-mixed")

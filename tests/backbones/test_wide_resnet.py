"""Wide ResNets: the published sizes, and a forward pass written from the paper."""

from math import sqrt

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F

from tests.small import composed
from unlabeled.backbones.wide_resnet import WideResNet
from unlabeled.errors import UserError
from unlabeled.optimizers.layer_decay import by_layer


@pytest.mark.parametrize(
    ("name", "features", "with_classifier"),
    [("wrn_28_2", 128, 1_467_610), ("wrn_28_8", 512, 23_354_842), ("wrn_28_10", 640, 36_479_194)],
)
def test_each_yaml_has_the_published_number_of_parameters(name: str, features: int, with_classifier: int) -> None:
    """arXiv:1605.07146, table 4: 23.4 and 36.5 million; FixMatch, 1.5 million; with a classifier of ten classes."""
    with torch.device("meta"):
        network: WideResNet = instantiate(composed(f"backbone={name}").backbone)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert network.num_features == features
    assert count + 10 * features + 10 == with_classifier


def literal(state: dict[str, Tensor], x: Tensor, activate_first: bool) -> Tensor:
    """WRN-16-1 in evaluation, from section 2 of the paper and libml/models.py, by the tensors' names."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        return torch.where(x > 0, x, 0.1 * x)

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for block in (0, 1):
            name, stride = f"block{group}.layer.{block}", 2 if group > 1 and block == 0 else 1
            active = norm(f"{name}.bn1", x)
            out = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm(f"{name}.bn2", out), state[f"{name}.conv2.weight"], padding=1)
            beside = active if activate_first and group == 1 and block == 0 else x
            if f"{name}.convShortcut.weight" in state:
                beside = F.conv2d(beside, state[f"{name}.convShortcut.weight"], stride=stride)
            x = beside + out
    return norm("bn1", x).flatten(2).mean(2)


@pytest.mark.parametrize("activate_first", [True, False])
def test_features_are_those_of_a_forward_pass_written_from_the_paper(activate_first: bool) -> None:
    torch.manual_seed(0)
    network = WideResNet(16, 2, 0.1, 0.1, activate_first).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), literal(network.state_dict(), images, activate_first))


def test_kernels_start_with_the_deviation_of_he_and_the_momentum_is_that_of_every_norm() -> None:
    network = WideResNet(10, 8, 0.1, 0.001)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {module.momentum for module in norms} == {0.001}
    kernel = network.get_parameter("block3.layer.0.conv2.weight")
    assert kernel.std().item() == pytest.approx(sqrt(2 / (9 * 512)), rel=0.02)


def test_recomputed_blocks_change_no_gradient() -> None:
    plain, recomputing = WideResNet(10, 1, 0.1, 0.1), WideResNet(10, 1, 0.1, 0.1, gradient_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 16, 16)
    for network in (plain, recomputing):
        network(images).pow(2).sum().backward()
    for wanted, found in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(found.grad, wanted.grad)  # type: ignore[arg-type]
    assert torch.equal(recomputing.bn1.running_mean, plain.bn1.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [4, 9, 27, 50])
def test_a_depth_that_gives_no_whole_number_of_blocks_is_refused(depth: int) -> None:
    with pytest.raises(UserError, match=rf"backbone.depth={depth} must be 6 n \+ 4"):
        WideResNet(depth, 1, 0.1, 0.1)


def test_rates_fall_from_block_to_block_and_the_batchnorm_behind_them_has_the_whole_rate() -> None:
    network = WideResNet(10, 1, 0.1, 0.1)
    named = {parameter: name for name, parameter in network.named_parameters()}
    groups = by_layer([{"params": list(network.parameters())}], network, 0.5)
    scale = {named[each]: group["lr_scale"] for group in groups for each in group["params"]}
    last = len(network.shards()) + 1
    assert scale["conv1.weight"] == 0.5**last
    assert scale["bn1.weight"] == scale["bn1.bias"] == 1

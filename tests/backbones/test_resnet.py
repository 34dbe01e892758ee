"""ResNets equal torchvision's; the stem for small images, width and initialisation are counted by hand."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from unlabeled.backbones.resnet import ResNet
from unlabeled.errors import UserError


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_weights_of_torchvision_load_under_the_same_names_and_give_equal_features(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    for module in theirs.modules():  # statistics that are not those of a fresh network
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 10
            module.running_var = torch.rand(module.num_features) + 0.5
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    with torch.device("meta"):  # no time spent on initial weights
        ours = ResNet(depth, 1.0, "imagenet").eval()
    ours.load_state_dict(state, strict=True, assign=True)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = ours(images)
        torch.testing.assert_close(features, theirs(images), rtol=1e-5, atol=1e-5)
    assert features.shape == (2, ours.num_features) == (2, 2048 if depth == 50 else 512)


def test_the_stem_for_small_images_keeps_32_pixels_until_the_first_stage() -> None:
    network = ResNet(18, 1.0, "cifar").eval()
    stem = network.conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    sizes: list[int] = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_pre_hook(lambda module, given: sizes.append(given[0].shape[-1]))
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    assert sizes == [32, 32, 16, 8]
    # torchvision's 11,689,512 less the classifier's 513,000; the stem has 3·3·3·64 weights instead of 7·7·3·64
    assert parameters(network) == 11_689_512 - 513_000 - 64 * 3 * (49 - 9)


@pytest.mark.parametrize(
    ("depth", "width", "num_features", "count"),
    [
        (18, 1.0, 512, 11_176_512),
        (18, 0.5, 256, 2_798_880),
        (50, 1.0, 2048, 23_508_032),  # SimCLR: 24 M
        (50, 2.0, 4096, 93_907_072),  # SimCLR: 94 M
        (10, 0.25, 128, 309_456),
    ],
)
def test_width_multiplies_the_channels(depth: int, width: float, num_features: int, count: int) -> None:
    with torch.device("meta"):
        network = ResNet(depth, width, "imagenet")
    assert network.num_features == num_features
    assert parameters(network) == count
    assert network.conv1.out_channels == int(64 * width)


@pytest.mark.parametrize(("depth", "last"), [(18, "bn2"), (50, "bn3")])
def test_with_zero_init_residual_each_block_starts_as_its_shortcut(depth: int, last: str) -> None:
    network = ResNet(depth, 0.25, "cifar", zero_init_residual=True)
    checked = 0
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            images = torch.randn(2, block.conv1.in_channels, 8, 8)
            shortcut = images if block.downsample is None else block.downsample(images)
            assert torch.equal(block(images), shortcut.relu())
            assert int(getattr(block, last).weight.count_nonzero()) == 0
            checked += 1
    assert checked == {18: 8, 50: 16}[depth]


def test_without_it_every_norm_starts_at_one_and_convolutions_with_the_deviation_of_he() -> None:
    network = ResNet(10, 1.0, "imagenet")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight.min().item(), module.bias.abs().max().item()) == (1, 0)
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 20}, "backbone.depth=20 is not one of 10, 18, 34, 50, 101, 152, 200"),
        ({"stem": "tiny"}, "backbone.stem=tiny is neither imagenet nor cifar"),
        ({"width": 0.01}, "backbone.width=0.01 leaves no channels: it must be at least 1/64"),
    ],
)
def test_what_cannot_be_built_is_refused_by_its_key(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"depth": 18, "width": 1.0, "stem": "cifar"}
    with pytest.raises(UserError) as caught:
        ResNet(**(given | changed))
    assert str(caught.value) == message


def test_a_max_pool_behind_the_stem_takes_the_place_of_its_own() -> None:
    small = [ResNet(10, 1 / 16, "cifar", pool=pool) for pool in (None, 1, 2)]
    large = [ResNet(10, 1 / 16, "imagenet", pool=pool) for pool in (None, 1)]
    sides = [each.stage_maps(torch.rand(2, 3, 32, 32))[0].shape[-1] for each in (*small, *large)]
    assert sides == [32, 32, 16, 8, 16]
    with pytest.raises(
        UserError, match=r"^backbone\.pool=9: the maps behind the stem have 8 × 8 pixels: give a smaller"
    ):
        ResNet(10, 1 / 16, "cifar", pool=9)(torch.rand(2, 3, 8, 8))
    plain, pooled = (ResNet(10, 1 / 16, "cifar", pool=pool).eval() for pool in (None, 2))
    pooled.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    stem = pooled.relu(pooled.bn1(pooled.conv1(images)))
    rest = torch.stack([stem[:, :, y::2, x::2] for y in (0, 1) for x in (0, 1)]).amax(0)  # the largest of four
    wanted = plain.layer4(plain.layer3(plain.layer2(plain.layer1(rest)))).mean((2, 3))
    torch.testing.assert_close(pooled(images), wanted)

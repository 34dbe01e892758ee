"""RegNetYs equal torchvision's, have the parameters that are published, and recompute without changing a number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torchvision.models import regnet

from unlabeled.backbones.regnet import RegNetY, stages
from unlabeled.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
TINY = {"depth": 4, "w_0": 8, "w_a": 8.0, "w_m": 2.0, "group_width": 8}  # widths 8, 16 and 32


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "widths", "depths", "with_classifier"),
    [  # facebookresearch/pycls and timm; with a classifier of 1000 classes, as they are published
        ("regnety_8gf", [168, 448, 896, 2016], [2, 4, 10, 1], 39_180_068),
        ("regnety_16gf", [224, 448, 1232, 3024], [2, 4, 11, 1], 83_590_140),
        ("regnety_32gf", [232, 696, 1392, 3712], [2, 5, 12, 1], 145_046_770),
        ("regnety_64gf", [328, 984, 1968, 4920], [2, 5, 12, 1], 281_378_786),
        ("regnety_128gf", [528, 1056, 2904, 7392], [2, 7, 17, 1], 644_812_894),
        ("regnety_256gf", [746, 1492, 4103, 10444], [2, 7, 17, 1], 1_282_601_138),
        ("regnety_10b", [2020, 4040, 11110, 28280], [2, 7, 17, 1], 9_352_215_872),  # "10B"; 9352 M
    ],
)
def test_each_yaml_is_the_published_network(
    name: str, widths: list[int], depths: list[int], with_classifier: int
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"backbone={name}", "name=x"]).backbone
    with torch.device("meta"):
        network: RegNetY = instantiate(config)
    plan = stages(config.depth, config.w_0, config.w_a, config.w_m, config.group_width, config.rounding)
    assert [stage.width for stage in plan] == widths
    assert [stage.depth for stage in plan] == [len(list(stage.children())) for stage in network.trunk_output] == depths
    assert network.num_features == widths[-1]
    assert parameters(network) + 1000 * widths[-1] + 1000 == with_classifier


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ((16, 48, 27.89, 2.09, 8), 4_344_144),  # regnet_y_400mf
        ((17, 192, 76.82, 2.19, 56), 39_381_472),  # regnet_y_8gf, 201,404 more than the paper's
        ((27, 456, 160.83, 2.52, 264), 644_812_894),  # regnet_y_128gf
    ],
)
def test_with_torchvisions_rounding_names_and_shapes_are_torchvisions(
    given: tuple[int, int, float, float, int], count: int
) -> None:
    blocks = regnet.BlockParams.from_init_params(*given, se_ratio=0.25)
    with torch.device("meta"):
        theirs, ours = regnet.RegNet(blocks), RegNetY(*given, rounding="torchvision")
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert parameters(theirs) == count


@pytest.mark.parametrize(
    ("name", "with_classifier"),
    [  # torchvision's models, whose weights so load
        ("regnetx_400mf", 5_495_976),
        ("regnetx_800mf", 7_259_656),
        ("regnetx_1_6gf", 9_190_136),
        ("regnetx_3_2gf", 15_296_552),
        ("regnetx_8gf", 39_572_648),
        ("regnetx_16gf", 54_278_536),
        ("regnetx_32gf", 107_811_560),
    ],
)
def test_each_regnetx_has_the_names_and_shapes_of_torchvisions(name: str, with_classifier: int) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"backbone={name}", "name=x"]).backbone
    blocks = regnet.BlockParams.from_init_params(
        config.depth, config.w_0, config.w_a, config.w_m, config.group_width, se_ratio=None
    )
    with torch.device("meta"):
        theirs, ours = regnet.RegNet(blocks), instantiate(config)
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert not any(".se." in key for key in expected)
    assert parameters(theirs) == with_classifier


def test_weights_of_torchvision_load_and_give_equal_features() -> None:
    theirs = regnet.regnet_y_400mf().eval()
    for module in theirs.modules():  # statistics that are not those of a fresh network
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 10
            module.running_var = torch.rand(module.num_features) + 0.5
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    with torch.device("meta"):
        ours = RegNetY(16, 48, 27.89, 2.09, 8).eval()
    ours.load_state_dict(state, strict=True, assign=True)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_convolutions_start_with_the_deviation_of_he_that_does_not_see_groups() -> None:
    network = RegNetY(16, 48, 27.89, 2.09, 8)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06)


def step(network: RegNetY, images: Tensor) -> dict[str, Tensor]:
    """Loss, gradients and state after a forward of large and one of small crops, and one backward."""
    loss = network(images).pow(2).sum() + network(images[..., :16, :16]).pow(2).sum()
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | gradients | dict(network.state_dict())


def test_recomputed_activations_change_neither_loss_nor_gradients_nor_running_statistics() -> None:
    plain, recomputing = RegNetY(**TINY), RegNetY(**TINY, gradient_checkpointing=True)  # type: ignore[arg-type]
    recomputing.load_state_dict(plain.state_dict())
    calls: list[int] = []
    recomputing.get_submodule("trunk_output.block1.block1-0.f").register_forward_hook(
        lambda module, given, made: calls.append(1)
    )
    images = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        expected, found = step(plain, images), step(recomputing, images)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    assert (
        int(found["stem.1.num_batches_tracked"])
        == int(found["trunk_output.block1.block1-0.f.a.1.num_batches_tracked"])
        == 4
    )
    assert len(calls) == 8  # it does recompute
    with torch.no_grad():
        torch.testing.assert_close(recomputing.eval()(images), plain.eval()(images))
    assert len(calls) == 9  # and not in evaluation


def test_a_tiny_regnet_learns_to_tell_four_images_apart() -> None:
    network = RegNetY(**TINY)  # type: ignore[arg-type]
    assert (network.num_features, [stage.width for stage in stages(4, 8, 8.0, 2.0, 8, "nearest")]) == (32, [8, 16, 32])
    classifier = nn.Linear(32, 4)
    images = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.SGD([*network.parameters(), *classifier.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = -classifier(network(images)).log_softmax(1).diagonal().mean()  # image i is of class i
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1
    assert losses[-1] < 0.05


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"w_0": 12}, "backbone.w_0=12 must be a multiple of 8"),
        ({"w_m": 1.0}, "w_m=1.0 above 1"),
        ({"depth": 0}, "depth=0"),
        ({"rounding": "up"}, "backbone.rounding=up is neither nearest nor torchvision"),
    ],
)
def test_what_cannot_be_built_is_refused_by_its_key(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        RegNetY(**(TINY | changed))
    assert words in str(caught.value)

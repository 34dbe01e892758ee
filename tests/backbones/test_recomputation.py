"""Gradient checkpointing takes memory away and changes no bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unlabeled.backbones.recomputation import is_recomputed
from unlabeled.backbones.regnet import RegNetY
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.distributed.batchnorm import split_batchnorm
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.objectives.parts.ema import frozen_copy, update


def split(network: Backbone) -> Backbone:
    split_batchnorm(network, 2)
    return network


def dropping(network: ResNet) -> Backbone:
    for stage in (network.layer1, network.layer4):
        stage[0].relu = nn.Dropout(0.3)
    return network


BACKBONES: dict[str, Callable[[bool], Backbone]] = {
    "resnet": lambda on: ResNet(18, 0.125, "cifar", gradient_checkpointing=on),
    "resnet with split BatchNorm": lambda on: split(ResNet(10, 0.125, "imagenet", gradient_checkpointing=on)),
    "resnet with dropout": lambda on: dropping(ResNet(10, 0.125, "cifar", gradient_checkpointing=on)),
    "bottlenecks": lambda on: ResNet(50, 0.0625, "cifar", gradient_checkpointing=on),
    "regnet": lambda on: RegNetY(4, 8, 8.0, 2.0, 8, gradient_checkpointing=on),
    "vit": lambda on: ViT(16, 4, 24, 3, 2, gradient_checkpointing=on),
    "timm": lambda on: TimmBackbone("test_vit", 16, gradient_checkpointing=on),
}


def of(name: str, gradient_checkpointing: bool) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES[name](gradient_checkpointing)


def step(network: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Loss, gradients and state after two forwards and one backward, and what is drawn then."""
    torch.manual_seed(1)
    loss = network(images).pow(2).sum() + network(images.flip(3)).pow(2).sum()
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "draw": torch.rand(1), **gradients, **network.state_dict()}


def kept_bytes(network: Backbone, images: Tensor) -> int:
    """Of all tensors that the backward pass will need, parameters aside."""
    found: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in (*network.parameters(), *network.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images).sum()
    return sum(found.values())


@pytest.mark.parametrize("name", BACKBONES)
def test_loss_gradients_statistics_and_draws_are_bit_for_bit_those_of_kept_activations(name: str) -> None:
    plain, recomputing = of(name, False), of(name, True)
    assert list(recomputing.state_dict()) == list(plain.state_dict())
    images = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    for _ in range(2):
        expected, found = step(plain, images), step(recomputing, images)
        assert found.keys() == expected.keys()
        assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


@pytest.mark.parametrize(("name", "size", "share"), [("resnet", 16, 0.6), ("vit", 16, 0.3), ("bottlenecks", 16, 0.5)])
def test_of_a_block_its_input_alone_is_kept(name: str, size: int, share: float) -> None:
    images = torch.randn(8, 3, size, size)
    assert kept_bytes(of(name, True), images) < share * kept_bytes(of(name, False), images)


def test_a_momentum_encoder_recomputes_with_weights_of_its_own() -> None:
    network, images = of("resnet", True), torch.randn(4, 3, 16, 16)
    copied = frozen_copy(network)
    before = copied(images)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    assert all(is_recomputed(block) for block in copied.shards())
    assert torch.equal(copied(images), before)
    update(copied, network, 0.0)
    assert torch.equal(copied(images), network(images))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", "timm's is not for BatchNorm, which resnet18 has"),
        ("pit_ti_224", "timm has none for pit_ti_224"),
    ],
)
def test_a_timm_model_that_cannot_be_recomputed_exactly_is_refused(model: str, message: str) -> None:
    with pytest.raises(UserError, match=f"backbone.gradient_checkpointing=true: {message}"):
        TimmBackbone(model, gradient_checkpointing=True)

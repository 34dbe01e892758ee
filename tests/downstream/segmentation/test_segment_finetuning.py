"""Fine-tuned segmentation against literal transcriptions: dilation, the head of a pyramid, rates and layers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.backbones.regnet import RegNetY
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.backbones.wide_resnet import WideResNet
from unlabeled.downstream.segmentation.dilation import dilated
from unlabeled.downstream.segmentation.finetuning import CNN, VIT, TunedSegmenter
from unlabeled.downstream.segmentation.pyramid import PyramidHead, SemanticHead
from unlabeled.errors import UserError
from unlabeled.objective import Backbone


def small_vit() -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=16, patch_size=4, width=16, depth=2, heads=2)


@torch.no_grad()
def test_the_semantic_head_adds_what_each_level_becomes_at_the_finest_size() -> None:
    torch.manual_seed(0)
    head: Any = SemanticHead(3, 8, 4).double()
    maps = [torch.randn(2, 8, 16 // 2**level, 12 // 2**level, dtype=torch.float64) for level in range(3)]

    def convolved(x: Tensor, part: Any) -> Tensor:
        convolution, norm, _ = part
        x = F.conv2d(x, convolution.weight, padding=1)
        groups = x.reshape(len(x), 32, -1)
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, keepdim=True, correction=0) + norm.eps).sqrt()
        return groups.reshape(x.shape).clamp(min=0)  # type: ignore[no-any-return]

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    (first,), (second,), (third, fourth) = head.branches
    total = convolved(maps[0], first) + up(convolved(maps[1], second))
    total += up(convolved(up(convolved(maps[2], third)), fourth))
    wanted = F.conv2d(total, head.classifier.weight, head.classifier.bias)
    assert torch.allclose(head(maps), wanted, atol=1e-9)
    assert PyramidHead(8, 3)(torch.randn(2, 8, 5, 4)).shape == (2, 3, 20, 16)  # of odd and even numbers of patches


@torch.no_grad()
@pytest.mark.parametrize("padding", ["both", "end"])
def test_the_last_stage_of_a_dilated_resnet_is_its_transcription(padding: str) -> None:
    torch.manual_seed(0)
    network: Any = ResNet(10, 1 / 16, "cifar", padding=padding).double().eval()  # type: ignore[arg-type]
    images = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    before = network(images)
    x = network.layer3(network.layer2(network.layer1(network.relu(network.bn1(network.conv1(images))))))
    block = network.layer4[0]
    y = block.bn1(F.conv2d(x, block.conv1.weight, padding=2, dilation=2)).relu()
    y = block.bn2(F.conv2d(y, block.conv2.weight, padding=2, dilation=2))
    wanted = (y + block.downsample[1](F.conv2d(x, block.downsample[0].weight))).relu()
    made = dilated(network, "dilate=true")
    assert torch.allclose(made.features(images, ["map"])["map"], wanted, atol=1e-12)
    assert torch.equal(network(images), before)  # a copy was dilated


@torch.no_grad()
def test_maps_of_every_kind_of_convolutional_network_become_twice_as_fine() -> None:
    networks: list[Backbone] = [
        RegNetY(depth=4, w_0=8, w_a=16.0, w_m=2.0, group_width=8),
        WideResNet(10, 1, 0.1, 0.001),
        TorchvisionBackbone("resnet18"),
    ]
    images = torch.randn(1, 3, 64, 64)
    for network in networks:
        network.eval()
        coarse, fine = (each.features(images, ["map"])["map"] for each in (network, dilated(network, "x")))
        assert fine.shape[2:] == tuple(2 * side for side in coarse.shape[2:]), type(network).__name__
    for other in (small_vit(), TorchvisionBackbone("mobilenet_v3_small")):
        with pytest.raises(UserError, match=r"^dilate=true: .* has no last stage of convolutions with a stride"):
            dilated(other, "dilate=true")


def test_the_rates_are_those_of_the_sources() -> None:
    assert VIT.rate(0) == pytest.approx(1e-10)
    assert VIT.rate(750) == pytest.approx(1e-4 * 0.5 * (1 - 750 / 160_000), rel=1e-5)
    assert VIT.rate(80_000) == pytest.approx(0.5e-4)
    assert [CNN.rate(step) for step in (0, 20_999, 21_000, 27_000)] == pytest.approx([3e-3, 3e-3, 3e-4, 3e-5])


def test_a_vit_has_a_rate_for_each_block_and_a_cnn_one_for_all() -> None:
    model = TunedSegmenter(small_vit(), 3, 16)
    groups = model.optimizer(model.settings).param_groups
    with pytest.raises(UserError, match=r"^size=4: a pyramid needs two patches of 4 pixels to a side"):
        TunedSegmenter(small_vit(), 3, 4)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    vit: Any = model.backbone
    pyramid = model.top
    assert scale[id(vit.patch_embed.proj.weight)] == pytest.approx(0.65**3)
    assert scale[id(vit.blocks[0].mlp.fc1.weight)] == pytest.approx(0.65**2)
    assert scale[id(vit.blocks[1].mlp.fc1.weight)] == pytest.approx(0.65)
    assert {scale[id(parameter)] for parameter in pyramid.parameters()} == {1.0}
    assert (decay[id(vit.pos_embed)], decay[id(vit.norm.weight)], decay[id(vit.blocks[0].attn.qkv.weight)]) == (
        0,
        0,
        0.05,
    )
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    convolutional = TunedSegmenter(ResNet(10, 1 / 16, "cifar"), 3, 16)
    (group,) = convolutional.optimizer(convolutional.settings).param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)


@pytest.mark.parametrize("backbone", [small_vit, lambda: ResNet(10, 1 / 16, "cifar")], ids=["vit", "resnet"])
def test_the_whole_copy_learns_and_the_given_network_stays(backbone: object) -> None:
    given: Backbone = backbone()  # type: ignore[operator]
    kept = {name: value.clone() for name, value in given.state_dict().items()}
    torch.manual_seed(0)
    model = TunedSegmenter(given, 2, 16)
    images, labels = torch.randn(2, 3, 16, 16), torch.randint(2, (2, 16, 16))
    optimizer = model.optimizer(model.settings)
    model.train()
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(images), labels)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(kept[name], value) for name, value in given.state_dict().items())

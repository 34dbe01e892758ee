"""Attention rollout against the paper's own loop, and against weights that timm itself computes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.evaluation.features import state_hash
from unlabeled.evaluation.reporting.attention import attention_pictures, overlay_heatmap, rollout, rollout_of_attention
from unlabeled.objective import Backbone
from unlabeled.views.pipeline import Views


def vit(pooling: Any = "cls") -> ViT:
    """Weights so large that attention is far from even."""
    torch.manual_seed(0)
    network = ViT(16, 4, 24, 3, 2, pooling=pooling)
    modules: list[Any] = list(network.blocks.modules())
    for block in modules:
        if hasattr(block, "qkv"):
            torch.nn.init.normal_(block.qkv.weight, std=0.5)
            torch.nn.init.normal_(block.qkv.bias, std=0.5)
    return network


def images(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def literal_rollout(network: Any, image: Tensor) -> list[list[float]]:
    """Section 3 of arXiv:2005.00928, number by number, in float64."""
    network = network.double()
    x = network._embed(image[None].double())
    joint: list[list[float]] = [[float(i == j) for j in range(x.shape[1])] for i in range(x.shape[1])]
    for block in network.blocks:
        qkv = block.attn.qkv(block.norm1(x))[0].tolist()
        n, width, heads = len(qkv), len(qkv[0]) // 3, block.attn.heads
        d = width // heads
        mean = [[0.0] * n for _ in range(n)]
        for head in range(heads):
            q = [row[head * d : head * d + d] for row in qkv]
            k = [row[width + head * d : width + head * d + d] for row in qkv]
            for i in range(n):
                weights = [
                    math.exp(sum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(d)) for j in range(n)
                ]
                for j in range(n):
                    mean[i][j] += weights[j] / sum(weights) / heads
        with_residual = [[mean[i][j] + float(i == j) for j in range(n)] for i in range(n)]
        with_residual = [[value / sum(row) for value in row] for row in with_residual]
        joint = [[sum(with_residual[i][m] * joint[m][j] for m in range(n)) for j in range(n)] for i in range(n)]
        x = block(x)
    return joint


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_the_rollout_is_that_of_the_literal_loop(pooling: str) -> None:
    network, batch = vit(pooling), images()
    with torch.no_grad():
        found = rollout(network, batch)
        joints = torch.tensor([literal_rollout(network, image) for image in batch])
    expected = joints[:, 0, 1:] if pooling == "cls" else joints[:, 1:, 1:].mean(1)
    assert found is not None
    assert found.shape == (2, 4, 4)
    torch.testing.assert_close(found.flatten(1), expected.double(), rtol=0, atol=1e-5)
    assert float(found.std()) > 0.01  # not a rollout of even attention, which any error would pass


def test_every_row_of_a_rollout_sums_to_one() -> None:
    attentions = [torch.rand(2, 5, 5, dtype=torch.float64).softmax(2) for _ in range(4)]
    torch.testing.assert_close(rollout_of_attention(attentions).sum(2), torch.ones(2, 5, dtype=torch.float64))
    uniform = torch.full((1, 4, 4), 0.25, dtype=torch.float64)
    # (J/4 + I)/2 twice: 3/4 of J/4 and 1/4 of I
    expected = 0.75 * uniform + 0.25 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(rollout_of_attention([uniform, uniform]), expected)


def test_the_first_block_comes_first() -> None:
    """Ā_2 · Ā_1, and not the other way round: token 0 looks at 1 in the second block, and 1 at 2 in the first."""
    first, second = torch.eye(3).double()[None].clone(), torch.eye(3).double()[None].clone()
    first[0, 1] = torch.tensor([0.0, 0.0, 1.0])
    second[0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert rollout_of_attention([first, second])[0, 0].tolist() == [0.5, 0.25, 0.25]
    assert rollout_of_attention([second, first])[0, 0].tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_wee_patch16_reg1_gap_256"])
def test_attention_of_a_timm_transformer_is_what_timm_multiplies_with(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, image_size=64).eval()
    found = rollout(backbone, images(64))
    seen: list[Tensor] = []
    attentions = [module for module in backbone.modules() if type(module).__name__ == "Attention"]
    for module in attentions:
        module.fused_attn = False  # type: ignore[assignment]
        module.get_submodule("attn_drop").register_forward_hook(lambda m, i, output: seen.append(output))
    with torch.no_grad():
        backbone(images(64))
    model: Any = backbone.model
    rolled, prefix = rollout_of_attention([each.double().mean(1) for each in seen]), model.num_prefix_tokens
    row = rolled[:, prefix:].mean(1) if model.global_pool == "avg" else rolled[:, 0]
    assert found is not None
    torch.testing.assert_close(found.flatten(1), row[:, prefix:], rtol=1e-4, atol=1e-7)


def test_networks_without_such_attention_have_no_rollout() -> None:
    others = ("swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "vit_pwee_patch16_reg1_gap_256")
    for name, size in (("resnet18", None), *((other, 224) for other in others)):
        assert rollout(TimmBackbone(name, size), images(224)) is None
    assert attention_pictures(Backbone(), Views(16, [], None, None, 1.0, "bilinear"), images()) == {}


def test_the_network_is_left_as_it_was_found() -> None:
    network = vit().train()
    before, state = state_hash(network), torch.get_rng_state()
    rollout(network, images())
    assert network.training
    assert state_hash(network) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in network.modules())


def test_pictures_are_hot_where_the_rollout_is_high() -> None:
    weights = torch.zeros(1, 4, 4, dtype=torch.float64)
    weights[0, :2] = 1.0
    picture = overlay_heatmap(torch.full((1, 3, 16, 16), 0.5), weights)
    assert float(picture[0, :, :4].mean()) > float(picture[0, :, -4:].mean()) + 0.2
    shown = attention_pictures(vit(), Views(16, [], [0.5] * 3, [0.2] * 3, 1.0, "bilinear"), images())
    assert list(shown) == ["image", "attention"]
    for column in shown.values():
        assert column.shape == (2, 3, 16, 16)
        assert 0 <= float(column.min()) <= float(column.max()) <= 1

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.vit import Attention, ViT
from unlabeled.evaluation.features import state_hash
from unlabeled.evaluation.reporting.attention import find_transformer
from unlabeled.representation import distance
from unlabeled.representation.distance import attention_distance, uniform_attention_distance


def images(size: int = 16) -> Tensor:
    return torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))


def vit() -> ViT:
    """Weights so large that attention is far from even."""
    torch.manual_seed(0)
    network = ViT(16, 4, 24, 2, 2)
    for module in network.modules():
        if isinstance(module, Attention):
            nn.init.normal_(module.qkv.weight, std=0.5)
    return network


@torch.no_grad()
def by_loops(network: ViT, batch: Tensor) -> list[list[float]]:
    """Over blocks, heads, images, queries and keys, from softmax(q kᵀ / √d) without the class token."""
    x, rows = network._embed(batch), []
    blocks: Any = network.blocks
    for block in blocks:
        qkv = block.attn.qkv(block.norm1(x)).double()
        heads = []
        for head in range(2):
            total = 0.0
            for image in qkv:
                q, k = image[1:, 12 * head : 12 * head + 12], image[1:, 24 + 12 * head : 36 + 12 * head]
                for query in range(16):
                    weights = [math.exp(float(q[query] @ k[key]) / math.sqrt(12)) for key in range(16)]
                    far = [4 * math.dist(divmod(query, 4), divmod(key, 4)) for key in range(16)]
                    total += sum(w * d for w, d in zip(weights, far, strict=True)) / sum(weights)
            heads.append(total / (16 * len(batch)))
        rows.append(heads)
        x = block(x)
    return rows


def test_attention_distance_equals_a_loop_over_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    network = vit().eval()
    monkeypatch.setattr(distance, "AT_A_TIME", 2)
    found = attention_distance(network, images())
    assert found is not None
    torch.testing.assert_close(found, torch.tensor(by_loops(network, images()), dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_head_that_attends_to_all_alike_looks_as_far_as_patches_lie_apart() -> None:
    network = vit()
    for module in network.modules():
        if isinstance(module, Attention):
            nn.init.zeros_(module.qkv.weight)
    found, transformer = attention_distance(network, images()), find_transformer(network)
    assert found is not None
    assert transformer is not None
    pairs = [4 * math.dist(divmod(a, 4), divmod(b, 4)) for a in range(16) for b in range(16)]
    assert uniform_attention_distance(transformer, 16) == pytest.approx(sum(pairs) / 256)
    torch.testing.assert_close(found, torch.full((2, 2), sum(pairs) / 256, dtype=torch.float64))


def test_heads_of_timm_are_counted_and_networks_without_such_attention_have_none() -> None:
    found = attention_distance(TimmBackbone("vit_tiny_patch16_224", 64), images(64))
    assert found is not None
    assert found.shape == (12, 3)
    assert attention_distance(ResNet(10, 0.25, "cifar"), images()) is None


def test_the_network_is_left_as_it_was_found() -> None:
    network = vit().train()
    before = state_hash(network)
    attention_distance(network, images())
    assert state_hash(network) == before
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())

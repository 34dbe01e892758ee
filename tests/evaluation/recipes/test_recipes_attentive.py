"""The attentive heads equal literal float64 loops and have the published numbers of weights."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.recipe_tasks import made, published, recipe, resnet, training, vit
from unlabeled.errors import UserError
from unlabeled.evaluation.recipes.attentive import AttentionPoolingHead, CrossAttentionHead, EfficientHead
from unlabeled.evaluation.recipes.frozen import FrozenRecipe
from unlabeled.objective import Backbone

WIDTH, CLASSES, TOKENS = 12, 5, 7


def drawn(head: nn.Module) -> nn.Module:
    """With every weight random, biases and norms too, in float64."""
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return head.double()


def tokens(batch: int = 3) -> Tensor:
    return torch.randn(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def normalised(x: Tensor, epsilon: float) -> Tensor:
    return (x - x.mean()) / ((x - x.mean()).square().mean() + epsilon).sqrt()


def attention_of(query: Tensor, keys: Tensor, values: Tensor, head_width: int) -> Tensor:
    """One query [D] over keys and values [n, D], head after head."""
    read = []
    for start in range(0, len(query), head_width):
        own = slice(start, start + head_width)
        weights = softmax([(query[own] @ key[own]).item() / math.sqrt(head_width) for key in keys])
        read.append(sum((weight * value[own] for weight, value in zip(weights, values, strict=True)), torch.zeros(())))
    return torch.cat(read)


def batch_normalised(x: Tensor) -> Tensor:
    """By the mean and the biased variance of each channel over all else, [..., D]."""
    rows = x.reshape(-1, x.shape[-1])
    return (x - rows.mean(0)) / (rows.var(0, correction=0) + 1e-6).sqrt()


def test_the_cross_attention_head_equals_v_jepas_formula() -> None:
    head, x = drawn(CrossAttentionHead(WIDTH, CLASSES, 4)), tokens()
    assert isinstance(head, CrossAttentionHead)
    expected = []
    for image in x:
        rows = torch.stack([normalised(token, 1e-5) * head.norm1.weight + head.norm1.bias for token in image])
        both = rows @ head.kv.weight.T + head.kv.bias
        query = head.query[0, 0]
        asked = head.q.weight @ query + head.q.bias
        query = query + attention_of(asked, both[:, :WIDTH], both[:, WIDTH:], 4)  # no projection, the query not normed
        hidden = head.fc1.weight @ (normalised(query, 1e-5) * head.norm2.weight + head.norm2.bias) + head.fc1.bias
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        query = query + head.fc2.weight @ gelu + head.fc2.bias
        expected.append(head.linear.weight @ query + head.linear.bias)
    torch.testing.assert_close(head(x), torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("queries", [1, 3])
def test_the_pooling_head_equals_aims_formula(queries: int) -> None:
    head, x = drawn(AttentionPoolingHead(WIDTH, CLASSES, 4, queries)), tokens()
    assert isinstance(head, AttentionPoolingHead)
    expected = []
    for image in batch_normalised(x):
        keys, values = image @ head.k.weight.T, image @ head.v.weight.T
        read = torch.stack([attention_of(query, keys, values, 4) for query in head.query[0]])
        expected.append(head.linear.weight @ read.mean(0))
    torch.testing.assert_close(head(x), torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_the_efficient_head_equals_its_formula_where_each_query_reads_a_slice_of_its_own() -> None:
    head, x = drawn(EfficientHead(WIDTH, CLASSES, 4)), tokens()
    assert isinstance(head, EfficientHead)
    read = []
    for image in x:
        values = image @ head.v.weight.T
        slices = []
        for number, query in enumerate(head.query):
            weights = softmax([(query @ token).item() / math.sqrt(WIDTH) for token in image])
            own = [weight * value[3 * number : 3 * number + 3] for weight, value in zip(weights, values, strict=True)]
            slices.append(torch.stack(own).sum(0))
        read.append(torch.cat(slices))
    expected = batch_normalised(torch.stack(read)) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("attentive_vjepa", 11 * 768**2 + 13 * 768 + 768 * 1000 + 1000),  # 6.5 million and the classifier
        ("attentive_aim", 2 * 768**2 + 768 + 768 * 1000),
        ("attentive_ep", 768**2 + 32 * 768 + 768 * 1000 + 1000),
    ],
)
def test_at_vit_b_the_heads_have_the_published_numbers_of_weights(name: str, weights: int) -> None:
    with torch.device("meta"):
        head = published(name).head(768, 1000)
    assert sum(parameter.numel() for parameter in head.parameters()) == weights


def test_v_jepas_initial_weights_have_the_published_deviations() -> None:
    head = CrossAttentionHead(256, 2, 64)
    for weight, std in ((head.query, 0.02), (head.q.weight, 0.02), (head.kv.weight, 0.02), (head.fc1.weight, 0.02)):
        assert weight.std().item() == pytest.approx(std, rel=0.2)
    assert head.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.02)
    assert head.kv.bias.abs().max().item() == 0


HEADS = {
    "v-jepa": partial(CrossAttentionHead, head_width=8),
    "aim": partial(AttentionPoolingHead, head_width=8, queries=2),
    "ep": partial(EfficientHead, queries=8),
}


def attentive(name: str, epochs: int) -> FrozenRecipe:
    own = training(optimizer=torch.optim.AdamW, epochs=epochs, batch_size=32, images_per_pass=32)
    return recipe(name=f"attentive/{name}", kinds=["tokens"], head=HEADS[name], learning_rates=[0.1], training=own)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("network", [resnet, vit])
def test_every_head_learns_colours_from_the_tokens_of_a_resnet_and_of_a_vit(name: str, network: type[Backbone]) -> None:
    world = made(network(), train=128)
    [score] = attentive(name, 12).train_predict(world.task)
    assert score.top1 >= 80  # a third is chance
    assert score.protocol == f"attentive/{name}-online/epochs=12/batch=32/lr=0.1/aug=scale0.5-1/features=tokens"


def test_widths_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(UserError, match=r"head\.head_width=64 does not divide the 24 channels"):
        CrossAttentionHead(24, 2, 64)
    with pytest.raises(UserError, match=r"head\.queries=32 does not divide the 24 channels"):
        EfficientHead(24, 2, 32)


def test_a_network_without_tokens_is_refused_in_one_line() -> None:
    class Flat(Backbone):
        num_features = 3

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    with pytest.raises(
        UserError, match=r"^probe\.attentive_ep\.kinds=\['tokens'\]: Flat has no such features; allowed: last$"
    ):
        attentive("ep", 1).train_predict(made(Flat()).task)

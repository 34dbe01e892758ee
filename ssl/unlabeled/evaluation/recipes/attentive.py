"""Attentive probes: classifiers that pool the tokens of a frozen network with learned queries.

They suit encoders trained by masking, whose class token or mean is not trained: always report them beside a linear
probe.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.core.ranges import Channels, Classes
from unlabeled.errors import UserError
from unlabeled.evaluation.recipes.linear import parameter_free_norm


class CrossAttentionHead(nn.Module):
    """V-JEPA's attentive classifier: one query, cross-attention without output projection, an MLP, a linear layer.

    q ← q + attention(q, LN(tokens)); q ← q + MLP(LN(q)); logits = linear(q). Bardes et al. 2024, arXiv:2404.08471;
    official code: facebookresearch/jepa, src/models/attentive_pooler.py, whose projection is built and never applied.

    Args:
        width: of the tokens.
        classes: number of logits.
        head_width: channels of one head of the attention; divides ``width``.

    Shape: tokens [B, n, width] → logits [B, classes].
    """

    takes_tokens = True

    def __init__(self, width: Channels, classes: Classes, head_width: Channels) -> None:
        super().__init__()
        self.heads = count_heads(width, head_width)
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.linear = nn.Linear(width, classes)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)
        k, v = self.kv(self.norm1(tokens)).chunk(2, -1)
        x = query + attend(self.q(query), k, v, self.heads)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        logits: Tensor = self.linear(x[:, 0])
        return logits

    def _initialise(self) -> None:
        """Initialises as the official pooler does, its last layer divided by √2; the classifier by torch's default."""
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in (self.q, self.kv, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.fc2.weight.div_(math.sqrt(2))


class AttentionPoolingHead(nn.Module):
    """AIM's attentive classifier: normalised tokens, learned queries without projection, one linear without bias.

    El-Nouby et al. 2024, arXiv:2401.08541; official code: apple/ml-aim, AttentionPoolingClassifier.

    Args:
        width: of the tokens.
        classes: number of logits.
        head_width: channels of one head of the attention; divides ``width``.
        queries: how many, averaged.

    Shape: tokens [B, n, width] → logits [B, classes].
    """

    takes_tokens = True

    def __init__(self, width: Channels, classes: Classes, head_width: Channels, queries: Channels) -> None:
        super().__init__()
        self.heads = count_heads(width, head_width)
        self.norm = parameter_free_norm(width)
        self.k, self.v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.query = nn.Parameter(0.02 * torch.randn(1, queries, width))
        self.linear = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        query = self.query.expand(len(tokens), -1, -1)
        logits: Tensor = self.linear(attend(query, self.k(x), self.v(x), self.heads).mean(1))
        return logits


class EfficientHead(nn.Module):
    """Efficient probing: each query weighs the raw tokens and reads its own slice of their values.

    Psomas et al. 2025, arXiv:2506.10178; official code: billpsomas/efficient-probing, poolings/ep.py and
    probe_heads.py. Weights: softmax(query · token / √width); the concatenated outputs of the queries go through
    BatchNorm without parameters and a linear layer.

    Args:
        width: of the tokens.
        classes: number of logits.
        queries: how many; divides ``width``.

    Shape: tokens [B, n, width] → logits [B, classes].
    """

    takes_tokens = True

    def __init__(self, width: Channels, classes: Classes, queries: Channels) -> None:
        super().__init__()
        if width % queries:
            raise UserError(f"head.queries={queries} does not divide the {width} channels of the tokens: give another")
        self.query = nn.Parameter(0.02 * torch.randn(queries, width))
        self.v = nn.Linear(width, width, bias=False)
        self.norm = parameter_free_norm(width)
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        queries, width = self.query.shape
        weights = (self.query @ tokens.transpose(1, 2) / math.sqrt(width)).softmax(-1)  # [B, queries, n]
        values = self.v(tokens).view(*tokens.shape[:2], queries, width // queries)  # [B, n, queries, width / queries]
        read = torch.einsum("bqn,bnqd->bqd", weights, values).flatten(1)
        logits: Tensor = self.linear(self.norm(read))
        return logits


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Computes scaled dot-product attention in several heads: q [B, m, D], k and v [B, n, D] → [B, m, D]."""
    q, k, v = (each.reshape(*each.shape[:2], heads, -1).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def count_heads(width: int, head_width: int) -> int:
    """Returns how many heads of ``head_width`` channels fit; raises UserError if the width is not divisible."""
    if width % head_width:
        raise UserError(
            f"head.head_width={head_width} does not divide the {width} channels of the tokens: give another"
        )
    return width // head_width

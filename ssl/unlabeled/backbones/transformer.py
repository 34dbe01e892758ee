"""The blocks of a vision transformer; all tensors have the names of timm's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # of every LayerNorm, as timm, MAE and MoCo v3; torch's own default is 1e-5


class Block(nn.Module):
    """Attention, then a two-layer MLP of four times the width, each with pre-norm and residual: [B, n, width].

    Args:
        width: of the tokens.
        heads: of the attention.
        drop_path: share of images that leave out each of the two while training.
        layer_scale: initial factor of each channel of what is added; None: no factors.
    """

    def __init__(self, width: int, heads: int, drop_path: float = 0.0, layer_scale: float | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = MLP(width, 4 * width)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps [B, n, width] to the same; ``bias`` [heads, n, n] is added to the attention before its softmax."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), bias)))
        added: Tensor = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return added


class Blocks(nn.Sequential):
    """Blocks one after the other, which may share a bias of their attention."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        for block in self:
            x = block(x, bias)
        return x


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Sets a share of the images [B, …] to 0 while training, and divides the others by what is left of 1."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * (kept / (1 - self.drop_prob))


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values: [B, n, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, n, width / heads] each
        attended = attend(q, k, v, bias)
        mixed: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        return mixed


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns scaled dot-product attention of [B, heads, n, D] each; ``bias`` [heads, n, n] is added to its logits.

    In bfloat16 on a CPU it is computed in float32: torch's bfloat16 kernel takes four times as long for 17 tokens of 32
    channels, and a quarter longer for 197 of 64 (torch 2.14, AVX-512 BF16).
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), bias).bfloat16()


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y

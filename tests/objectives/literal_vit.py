"""A vision transformer written out by hand, for one image and from the tensors of a file."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def literal_block(x: Tensor, state: Mapping[str, Tensor], name: str, heads: int, bias: Tensor | None = None) -> Tensor:
    """One pre-norm transformer block on one image [n, D], a head at a time; ``bias`` [heads, n, n] of its attention."""
    width = x.shape[1]
    size = width // heads
    y = literal_norm(x, state, f"{name}.norm1")
    qkv = y @ state[f"{name}.attn.qkv.weight"].T + state[f"{name}.attn.qkv.bias"]
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
        logits = q @ k.T / math.sqrt(size) + (0 if bias is None else bias[head])
        outputs.append(torch.softmax(logits, dim=1) @ v)
    mixed = torch.cat(outputs, 1) @ state[f"{name}.attn.proj.weight"].T + state[f"{name}.attn.proj.bias"]
    x = x + mixed * state.get(f"{name}.ls1.gamma", 1)
    y = literal_norm(x, state, f"{name}.norm2") @ state[f"{name}.mlp.fc1.weight"].T + state[f"{name}.mlp.fc1.bias"]
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    y = y @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]
    return x + y * state.get(f"{name}.ls2.gamma", 1)


def literal_norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean(1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def literal_embedding(image: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Patches of an image [3, H, W], row by row, projected: [L, D]; no positions."""
    p = state["patch_embed.proj.weight"].shape[-1]
    tops, lefts = range(0, image.shape[1], p), range(0, image.shape[2], p)
    cut = torch.stack([image[:, top : top + p, left : left + p].flatten() for top in tops for left in lefts])
    return cut @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]


def literal_blocks(x: Tensor, state: Mapping[str, Tensor], name: str, heads: int, bias: Tensor | None = None) -> Tensor:
    """All blocks whose names begin with ``name``, one after the other."""
    depth = len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})
    for number in range(depth):
        x = literal_block(x, state, f"{name}.{number}", heads, bias)
    return x


def literal_linear(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

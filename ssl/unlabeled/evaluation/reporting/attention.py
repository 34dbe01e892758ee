"""Shows which patches a vision transformer's features come from, by attention rollout.

Abnar and Zuidema 2020, arXiv:2005.00928, section 3. It follows only attention and residual connections, not the
values, MLPs and norms: an illustration, not a measurement.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.evaluation.features import eval_mode, full_float32
from unlabeled.objective import Backbone
from unlabeled.views.pipeline import Views

HEAT = 0.55  # weight of the attention's colour; the rest is the image in grey
OUTLIERS = 0.05  # share of patches clipped at each end: a single patch often has most of the weight


@dataclass(frozen=True)
class _Layer:
    """Settings that compute one block's attention from the output of its ``qkv`` layer."""

    qkv: nn.Module
    heads: int
    scale: float
    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # of queries and of keys
    bias: Callable[[], Tensor] | None = None  # returns what is added before the softmax, [heads, n, n]


@dataclass(frozen=True)
class Transformer:
    """The attention layers of a plain vision transformer."""

    layers: Sequence[_Layer]
    prefix: int  # tokens before the patches: class token, registers
    grid: tuple[int, int]
    pooled: bool  # features are the mean of the patches, not the class token


@torch.no_grad()
def rollout(backbone: Backbone, images: Tensor) -> Tensor | None:
    """Computes the attention rollout of each image.

    With A the mean over the heads of a block's attention, each block passes on Ā = (A + I) / 2, whose rows sum to 1,
    and the rollout is Ā_L … Ā_1. The function returns its row of the class token, or, if the features are the mean of
    the patches, the mean of their rows; only columns of patches, so that their sum is below 1.

    Args:
        backbone: in any mode; left as it was found.
        images: [B, 3, h, w], as the network takes them, on its device; all patches are seen.

    Returns:
        float64 [B, rows, columns] of patches; None where the backbone is no plain vision transformer (one that has
        windows, rotary position embeddings, or attention pooling).
    """
    transformer = find_transformer(backbone)
    if transformer is None:
        return None
    return _patches(
        rollout_of_attention(attentions(backbone, transformer, images, lambda heads: heads.mean(1))), transformer
    )


def rollout_of_attention(attentions: Sequence[Tensor]) -> Tensor:
    """Multiplies attention [B, n, n] of each block, rows sum to 1, first to last, into the rollout [B, n, n]."""
    eye = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype, device=attentions[0].device)
    result = eye.expand_as(attentions[0])
    for attention in attentions:
        result = (0.5 * attention + 0.5 * eye) @ result
    return result


def attention_pictures(backbone: Backbone, views: Views, images: Tensor) -> dict[str, Tensor]:
    """Returns images, and the same images under their rollout.

    Args:
        backbone: see :func:`rollout`.
        views: the views that made ``images``.
        images: [B, 3, h, w], as evaluation sees them, on the backbone's device.

    Returns:
        Columns [B, 3, h, w] in [0, 1] on the CPU by their names; none where there is no rollout.
    """
    found = rollout(backbone, images)
    if found is None:
        return {}
    pixels = views.shown(images).cpu()
    return {"image": pixels, "attention": overlay_heatmap(pixels, found.cpu())}


def overlay_heatmap(pixels: Tensor, weights: Tensor) -> Tensor:
    """Overlays grey images [B, 3, h, w] in [0, 1] with weights [B, rows, columns]: dark is low, yellow high.

    The weights of each image are scaled to [0, 1] separately: colours are comparable only within an image.
    """
    import matplotlib

    flat = weights.flatten(1)
    low, high = (flat.quantile(share, 1)[:, None, None] for share in (OUTLIERS, 1 - OUTLIERS))
    scaled = ((weights - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)[:, None]
    fine = nn.functional.interpolate(scaled, pixels.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    colours = torch.from_numpy(matplotlib.colormaps["inferno"](fine.numpy())[..., :3]).permute(0, 3, 1, 2)
    grey = pixels.mean(1, keepdim=True).expand_as(pixels)
    return torch.lerp(grey, colours.to(pixels.dtype), HEAT)


def _patches(rolled: Tensor, transformer: Transformer) -> Tensor:
    prefix = transformer.prefix
    row = rolled[:, prefix:].mean(1) if transformer.pooled else rolled[:, 0]
    patches, (rows, columns) = row[:, prefix:], transformer.grid
    scale = math.sqrt(patches.shape[1] / (rows * columns))  # of images of another size than the network's
    return patches.reshape(len(row), round(rows * scale), -1)


@torch.no_grad()
def attentions(
    backbone: Backbone, transformer: Transformer, images: Tensor, kept: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Returns ``kept`` of each block's attention, from the first block to the last.

    Fused attention does not return its weights, so that they are computed again from queries and keys.

    Args:
        backbone: in any mode; left as it was found.
        transformer: of :func:`find_transformer`.
        images: [B, 3, h, w], on the backbone's device.
        kept: maps float64 [B, heads, n, n], rows sum to 1, to the part that is returned; all of it would be large.
    """
    seen: list[Tensor] = []

    def listen(layer: _Layer) -> Callable[..., None]:
        return lambda module, inputs, output: seen.append(kept(_attention(layer, output)))

    hooks = [layer.qkv.register_forward_hook(listen(layer)) for layer in transformer.layers]
    try:
        with eval_mode(backbone), full_float32(images.device):
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _attention(layer: _Layer, qkv: Tensor) -> Tensor:
    q, k, _ = qkv.reshape(*qkv.shape[:2], 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    q, k = (norm(x).double() for norm, x in zip(layer.norms, (q, k), strict=True))
    logits = q @ k.transpose(2, 3) * layer.scale
    return (logits if layer.bias is None else logits + layer.bias().double()).softmax(3)


def find_transformer(backbone: Backbone) -> Transformer | None:
    """Returns the backbone's attention, or None if it is no plain vision transformer of this project or of timm."""
    if isinstance(backbone, ViT):
        layers = [_own(block.attn, backbone.rel_pos_bias) for block in backbone.blocks]
        return Transformer(layers, backbone.prefix, (backbone.grid, backbone.grid), backbone.pooling == "gap")
    return _of_timm(backbone.model) if isinstance(backbone, TimmBackbone) else None


def _own(attention: Any, bias: nn.Module | None) -> _Layer:
    head_width = attention.qkv.in_features // attention.heads
    return _Layer(attention.qkv, attention.heads, head_width**-0.5, (nn.Identity(), nn.Identity()), bias)


def _of_timm(model: Any) -> Transformer | None:
    """Returns the attention of timm's plain transformers; a block of another kind may mix tokens in another way."""
    from timm.layers import Attention
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer or model.global_pool not in ("token", "avg"):
        return None
    attentions: list[Any] = [getattr(block, "attn", None) for block in model.blocks]
    if any(type(each) is not Attention for each in attentions):
        return None
    layers = [_Layer(a.qkv, a.num_heads, a.scale, (a.q_norm, a.k_norm)) for a in attentions]
    return Transformer(layers, model.num_prefix_tokens, model.patch_embed.grid_size, model.global_pool == "avg")

"""Tensors of vision transformers by the names of BEiT's code, fairseq and Hugging Face, and ours.

BEiT's (github.com/microsoft/unilm, beit) are those of SimMIM and data2vec (facebookresearch/data2vec_vision) too. It
and fairseq keep the biases of queries and values apart, and Hugging Face queries, keys and values altogether; here they
are one layer, whose keys have a bias: it changes no attention, since it adds the same to all of a query's logits.
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"(?:encoder\.)?(?:blocks|layer)\.(?P<block>\d+)\.(?P<part>.+)")
_PARTS = {
    # BEiT
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    # fairseq, examples/data2vec/models/data2vec_vision.py
    "mlp.0.weight": "mlp.fc1.weight",
    "mlp.0.bias": "mlp.fc1.bias",
    "mlp.2.weight": "mlp.fc2.weight",
    "mlp.2.bias": "mlp.fc2.bias",
    # transformers, models/vit, models/beit, models/data2vec, models/ijepa
    "lambda_1": "ls1.gamma",
    "lambda_2": "ls2.gamma",
}
_LAYERS = {  # of transformers
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.qkv": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_ENDS = {
    # fairseq
    "cls_emb": "cls_token",
    "patch_embed.conv.weight": "patch_embed.proj.weight",
    "patch_embed.conv.bias": "patch_embed.proj.bias",
    "encoder.norm.weight": "norm.weight",
    "encoder.norm.bias": "norm.bias",
    "encoder.rel_pos_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    # transformers
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "encoder.relative_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}


def from_other_transformers(name: str) -> str | None:
    """Returns our name of a tensor, or None where this table has none."""
    if name in _ENDS:
        return _ENDS[name]
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    layer, _, tensor = found["part"].rpartition(".")
    part = _PARTS.get(found["part"]) or (f"{_LAYERS[layer]}.{tensor}" if layer in _LAYERS else found["part"])
    return f"blocks.{found['block']}.{part}"


def join_attention(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Joins queries, keys and values that a file keeps apart, if the backbone has them in one layer.

    Args:
        tensors: of a file, by their paths.
        wanted: names of the backbone's tensors.

    Returns:
        The tensors; those of a whole triple, or of a pair of biases, are under the path of the layer, ``….qkv.weight``
            and ``….qkv.bias``, and what is no such whole is left as it is.
    """
    joined = dict(tensors)
    if not any(name.endswith(".attn.qkv.bias") for name in wanted) or any(name.endswith("q_bias") for name in wanted):
        return joined
    for path in tensors:
        for ending, others in _APART.items():
            if path.endswith(ending):
                _join(joined, path.removesuffix(ending), (ending, *others))
    return joined


# The first of the tensors that belong together → those of keys (None: their bias is 0) and values.
_APART: dict[str, tuple[str | None, str]] = {
    ".q_bias": (None, ".v_bias"),
    ".query.weight": (".key.weight", ".value.weight"),
    ".query.bias": (".key.bias", ".value.bias"),
}


def _join(tensors: dict[str, Tensor], layer: str, endings: tuple[str, str | None, str]) -> None:
    """Puts three parts of one shape in place of one another, in ``tensors``; keys' biases may be missing."""
    query, key, value = (None if ending is None else tensors.get(layer + ending) for ending in endings)
    if query is None or value is None or query.shape != value.shape or query.dtype != value.dtype or not query.ndim:
        return
    if key is None and query.ndim == 1:
        key = torch.zeros_like(query)
    if key is None or key.shape != query.shape or key.dtype != query.dtype:
        return
    for ending in endings:
        if ending is not None:
            tensors.pop(layer + ending, None)
    tensors[f"{layer}.qkv.{'bias' if query.ndim == 1 else 'weight'}"] = torch.cat([query, key, value])

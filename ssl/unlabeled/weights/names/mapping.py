"""Maps the names of tensors in several libraries to ours."""

import re
from collections.abc import Collection, Iterator

from unlabeled.weights.names.regnet import from_timm, from_vissl, to_timm
from unlabeled.weights.names.transformers import from_other_transformers

# A ResNet as a plain sequence of torchvision's children, the way lightly's examples cut off the classifier.
_SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Inside a block of Separius/SimCLRv2-Pytorch (resnet.py): convolutions and BatchNorms in one sequence.
_SIMCLR_V2 = {
    "net.0": "conv1",
    "net.1.0": "bn1",
    "net.2": "conv2",
    "net.3.0": "bn2",
    "net.4": "conv3",
    "net.5.0": "bn3",
    "projection.shortcut": "downsample.0",
    "projection.bn.0": "downsample.1",
}
# mmpretrain's and mmselfsup's vision_transformer.py (mmpretrain/models/backbones): ours are timm's names.
_MM_VIT = {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2"}
_MM_VIT |= {"attn.qkv": "attn.qkv", "attn.proj": "attn.proj"}
_MM_VIT_ENDS = {"patch_embed.projection": "patch_embed.proj", "ln1": "norm"}
_MM_VIT_BLOCK = re.compile(r"layers\.(?P<block>\d+)\.(?P<part>.+)")
_SIMCLR_V2_STEM = {"net.0.0": "conv1", "net.0.1.0": "bn1"}
_SIMCLR_V2_BLOCK = re.compile(r"net\.(?P<stage>[1-4])\.blocks\.(?P<block>\d+)\.(?P<part>.+)")

# DINOv2's vision_transformer.py: blocks in chunks for FSDP, numbered through; registers
_DINOV2_BLOCK = re.compile(r"blocks\.\d+\.(?P<block>\d+)\.(?P<part>.+)")


def map_key(name: str, wanted: Collection[str]) -> str | None:
    """Returns the name in ``wanted``, a backbone's tensors, of the file's tensor ``name``; None where there is none."""
    for alias in _candidates(name):
        for candidate in (alias, f"model.{alias}"):  # the networks of backbone=timm and backbone=torchvision
            if candidate in wanted:
                return candidate
    return None


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield name.removeprefix("_feature_blocks.")  # VISSL's ResNet
    layer, dot, rest = name.partition(".")
    yield f"{_SEQUENCE.get(layer, layer)}{dot}{rest}"
    ours = (
        from_vissl(name) or from_timm(name) or _from_simclr_v2(name) or _from_mm_vit(name) or _from_dinov2(name) or name
    )
    yield ours
    yield from_other_transformers(name) or ours
    yield to_timm(ours) or ours  # another library's RegNetY in backbone=timm


def _from_simclr_v2(name: str) -> str | None:
    part, _, tensor = name.rpartition(".")
    if part in _SIMCLR_V2_STEM:
        return f"{_SIMCLR_V2_STEM[part]}.{tensor}"
    found = _SIMCLR_V2_BLOCK.fullmatch(part)
    if found is None or found["part"] not in _SIMCLR_V2:
        return None
    return f"layer{found['stage']}.{found['block']}.{_SIMCLR_V2[found['part']]}.{tensor}"


def _from_mm_vit(name: str) -> str | None:
    part, _, tensor = name.rpartition(".")
    if part in _MM_VIT_ENDS:
        return f"{_MM_VIT_ENDS[part]}.{tensor}"
    found = _MM_VIT_BLOCK.fullmatch(part)
    if found is None or found["part"] not in _MM_VIT:
        return None
    return f"blocks.{found['block']}.{_MM_VIT[found['part']]}.{tensor}"


def _from_dinov2(name: str) -> str | None:
    if name == "register_tokens":
        return "reg_token"
    found = _DINOV2_BLOCK.fullmatch(name)
    return None if found is None else f"blocks.{found['block']}.{found['part']}"

"""Checks what weights do not show: a checkpoint can load into another stem or grid and then give other features."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlabeled.backbones.vit import Attention, ViT, sincos_position
from unlabeled.core.run_config import EARLIER_VALUES
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

if TYPE_CHECKING:
    from unlabeled.weights.checkpoint import Checkpoint

TOLERANCE = 1e-5  # of position tables: float32 angles, as MAE and MoCo v3 compute them, are off by 1e-6
# Attention heads of the published networks by width: Dosovitskiy et al. 2020, Table 1, and DeiT, Table 1; MoCo v3's
# ViT-S has twice as many (its vits.py).
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
MOCO_V3_HEADS = HEADS | {384: 12}
# Keys that make no difference for loaded weights
NO_CHANGE = (
    *("_convert_", "freeze", "gradient_checkpointing", "initialisation", "zero_init_residual"),
    *("drop_path", "uniform_drop_path"),
)


def check_same_backbone(checkpoint: "Checkpoint", asked: Mapping[str, Any]) -> None:
    """Raises UserError where the configuration ``backbone`` is not the one that this project's run was made with."""
    own = (checkpoint.config or {}).get("backbone")
    if not isinstance(own, dict):
        return
    earlier = {key: EARLIER_VALUES.get(f"backbone.{key}") for key in asked}
    own = {**earlier, **own}
    keys = [key for key in {**own, **asked} if key not in NO_CHANGE and own.get(key) != asked.get(key)]
    if keys:
        given = ", ".join(f"backbone.{key}={asked.get(key)} instead of {own.get(key)}" for key in keys)
        raise UserError(f"checkpoint={checkpoint.path} was made with another backbone: {given}; leave backbone out")


SCALED = ("GoogLeNet", "Inception3")  # their published weights take images that torchvision scales once more
SMOOTHED = ("resnetaa", "resnetblur")  # of timm: a ResNet's tensors, and a filter without weights before its strides


def _check_hidden(checkpoint: "Checkpoint", backbone: Backbone) -> None:
    """Raises UserError for weights of a network that computes something else with tensors of the same names."""
    model = type(getattr(backbone, "model", None)).__name__
    if model in SCALED and checkpoint.layout != "own run":
        raise UserError(
            f"checkpoint={checkpoint.path}: published weights of {model} are for images that torchvision scales once"
            " more, which is not built here; give another network"
        )
    origin = str(checkpoint.path).removeprefix("timm:")
    if origin.startswith(SMOOTHED) and origin != str(checkpoint.path) and hasattr(backbone, "layer1"):
        raise UserError(
            f"weights={checkpoint.path}: smooths maps before each stride, which this ResNet does not: give"
            f" backbone=timm backbone.model={origin.partition('.')[0]}"
        )


def check_geometry(
    checkpoint: "Checkpoint", found: Mapping[str, Tensor], backbone: Backbone, resized: bool = False
) -> None:
    """Raises UserError where the weights fit ``backbone`` but belong to another network.

    Adds to ``checkpoint.notes``.

    Args:
        checkpoint: with its layout.
        found: tensors by the backbone's names.
        backbone: not loaded yet.
        resized: whether the positions were interpolated to images of the backbone's size.
    """
    _check_hidden(checkpoint, backbone)
    shown = _visible_settings(backbone)
    if resized:
        shown.pop("image_size", None)
    own = (checkpoint.config or {}).get("backbone") or {}
    for key in shown.keys() & own.keys():
        if own[key] is not None and shown[key] != own[key]:
            raise UserError(
                f"checkpoint={checkpoint.path}: backbone.{key}={shown[key]}, but the run was made with {own[key]}"
            )
    pool = getattr(backbone, "pool", None)
    if "stem" in own and pool != own.get("pool"):  # null is a value here, and older runs have no such key
        raise UserError(
            f"checkpoint={checkpoint.path}: backbone.pool={pool}, but the run was made with {own.get('pool')}"
        )
    if checkpoint.layout == "solo-learn" and shown.get("stem") == "cifar":
        raise UserError(
            f"checkpoint={checkpoint.path}: solo-learn's stem for small images pads by 2 and gives maps of 34×34, "
            "backbone.stem=cifar pads by 1: the weights would load and mean another network"
        )
    wanted = "end" if checkpoint.layout == "BYOL" else None
    if wanted is not None and getattr(backbone, "padding", None) != wanted:
        raise UserError(
            f"checkpoint={checkpoint.path}: Haiku's convolutions with a stride add their odd pixel at the end, and the "
            "weights would load and mean another network: give backbone=resnet50 backbone.padding=end"
        )
    if isinstance(backbone, ViT):
        table = found.get("pos_embed")
        if table is not None and not resized and not checkpoint.weights.get("resized"):
            _check_positions(checkpoint, table, backbone)
        if not own and backbone.rel_pos_bias is None:  # whose table shows the heads
            _check_heads(checkpoint, table, backbone)


def mismatch_remedy(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unknown: list[str]) -> str:
    """Suggests what to do about tensors that do not fit, if they show it; the text begins with a semicolon."""
    advice = []
    grids = [_grid(state.get("pos_embed")) for state in (found, wanted)]
    kernel = found["patch_embed.proj.weight"].shape[-1] if "patch_embed.proj.weight" in found else 0
    if kernel and kernel != wanted["patch_embed.proj.weight"].shape[-1]:
        advice.append(f"give backbone.patch_size={kernel}")
    if kernel and None not in grids and grids[0] != grids[1]:
        advice.append(f"give backbone.image_size={grids[0] * kernel}")  # type: ignore[operator]
    stem = found.get("conv1.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[-1] != wanted["conv1.weight"].shape[-1]:
        advice.append(f"give backbone.stem={'cifar' if stem.shape[-1] == 3 else 'imagenet'}")
    if any(".fc_norm." in f".{name}" for name in unknown):
        advice.append(
            "it averages patches before its last norm (fc_norm), as fine-tuned by MAE's code: no ViT here does"
        )
    if any(name.endswith(".ls1.gamma") for name in unknown):
        advice.append("it scales layers, as DINOv2: give backbone.layer_scale=1e-5")
    if any(name.endswith(("register_tokens", "reg_token")) for name in unknown):
        advice.append("it has registers: give backbone.registers, 4 in DINOv2's")
    if any("mixing_conv" in name for name in unknown):
        advice.append("it has selective kernels (SimCLR v2's sk1), which no backbone here has")
    return "".join(f"; {each}" for each in advice)


def _grid(table: Tensor | None) -> int | None:
    return None if table is None or table.ndim != 3 else round((table.shape[1] - 1) ** 0.5)


def _visible_settings(backbone: Backbone) -> dict[str, Any]:
    """Returns the settings of a network that the shapes of its tensors do not show."""
    shown = {
        key: getattr(backbone, key)
        for key in ("image_size", "patch_size", "pooling", "padding")
        if hasattr(backbone, key)
    }
    if isinstance(backbone, ViT):
        shown["heads"] = _heads(backbone)
    conv1 = getattr(backbone, "conv1", None)
    if isinstance(conv1, nn.Conv2d):
        shown["stem"] = "cifar" if conv1.kernel_size == (3, 3) else "imagenet"
    return shown


def _heads(backbone: ViT) -> int:
    return next(module.heads for module in backbone.modules() if isinstance(module, Attention))


def _check_positions(checkpoint: "Checkpoint", table: Tensor, backbone: ViT) -> None:
    """Checks that a fixed position table equals the file's, as it is part of the architecture."""
    if backbone.position == "learned" or backbone.pos_embed is None or _close(table, backbone.pos_embed):
        return
    kind = _kind_of(table, backbone)
    raise UserError(
        f"checkpoint={checkpoint.path}: its pos_embed is not the table of this backbone: give backbone.position={kind}"
    )


def _kind_of(table: Tensor, backbone: ViT) -> str:
    for rows_first, kind in ((False, "sincos"), (True, "sincos_rows_first")):
        fixed = sincos_position(backbone.num_features, backbone.grid, rows_first)
        if _close(table, fixed[:, 1 - backbone.own_position :]):
            return kind
    return "learned"


def _close(table: Tensor, other: Tensor) -> bool:
    return torch.allclose(table.float(), other.detach().cpu().float(), rtol=0, atol=TOLERANCE)


def _check_heads(checkpoint: "Checkpoint", table: Tensor | None, backbone: ViT) -> None:
    """Checks the number of heads, which changes no shape, against that of the published networks."""
    rows_first = table is not None and _kind_of(table, backbone) == "sincos_rows_first"
    moco_v3 = checkpoint.layout == "MoCo v3" or rows_first
    published = (MOCO_V3_HEADS if moco_v3 else HEADS).get(backbone.num_features)
    heads = _heads(backbone)
    if published in (None, heads):
        return
    differs = f"backbone.heads={heads}, but the published network of width {backbone.num_features} has {published}"
    if checkpoint.layout in ("MoCo v3", "DINO", "MAE"):
        raise UserError(
            f"checkpoint={checkpoint.path}: {differs}, which weights do not show: give backbone.heads={published}"
        )
    checkpoint.notes.append(f"{differs}; the file does not say it")

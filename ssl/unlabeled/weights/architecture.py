"""Finds the timm or torchvision network that a backbone is: its name, its arguments, and its tensors' names there.

The result is always checked: an export is loaded in that library, and its features are compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unlabeled.backbones.regnet import RegNetY, stages
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.backbones.vit import Attention, ViT
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.weights.names.regnet import renamed_to_timm

State = dict[str, Tensor]

# Patch size, width, depth and heads of timm's plain ViTs for 224 pixels (timm/models/vision_transformer.py).
VITS = {
    "vit_base_patch16_224": (16, 768, 12, 12),
    "vit_base_patch32_224": (32, 768, 12, 12),
    "vit_base_patch8_224": (8, 768, 12, 12),
    "vit_tiny_patch16_224": (16, 192, 12, 3),
    "vit_small_patch16_224": (16, 384, 12, 6),
    "vit_small_patch32_224": (32, 384, 12, 6),
    "vit_large_patch16_224": (16, 1024, 24, 16),
    "vit_large_patch32_224": (32, 1024, 24, 16),
    "vit_huge_patch14_224": (14, 1280, 32, 16),
}
# Depth, w_0, w_a, w_m and group width of torchvision's RegNetYs (torchvision/models/regnet.py).
REGNETS: dict[str, tuple[int, int, float, float, int]] = {
    "regnet_y_400mf": (16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": (14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": (27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": (21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": (17, 192, 76.82, 2.19, 56),
    "regnet_y_16gf": (18, 200, 106.23, 2.48, 112),
    "regnet_y_32gf": (20, 232, 115.89, 2.53, 232),
    "regnet_y_128gf": (27, 456, 160.83, 2.52, 264),
}
# The same of its RegNetXs, which have no squeeze-and-excitation.
REGNETS_X: dict[str, tuple[int, int, float, float, int]] = {
    "regnet_x_400mf": (22, 24, 24.48, 2.54, 16),
    "regnet_x_800mf": (16, 56, 35.73, 2.28, 16),
    "regnet_x_1_6gf": (18, 80, 34.01, 2.25, 24),
    "regnet_x_3_2gf": (25, 88, 26.31, 2.25, 48),
    "regnet_x_8gf": (23, 80, 49.56, 2.88, 120),
    "regnet_x_16gf": (22, 216, 55.59, 2.1, 128),
    "regnet_x_32gf": (23, 320, 69.86, 2.0, 168),
}


@dataclass(frozen=True)
class LibraryModel:
    """A backbone in the terms of another library."""

    name: str
    state: State  # without a classifier
    arguments: dict[str, Any] = field(default_factory=dict)  # beside the name; plain values
    classifier: str = ""  # path of the layer that takes the features, where the library has no argument to leave it out


def to_timm(backbone: Backbone, spec: Mapping[str, Any], to: str) -> LibraryModel:
    """Returns the model for ``timm.create_model(name, num_classes=0, **arguments)``.

    Args:
        backbone: with the weights to write.
        spec: what it was built from, the ``backbone`` of a configuration as plain values.
        to: the target, for messages.

    Raises:
        UserError: timm has no such network.
    """
    if isinstance(backbone, TimmBackbone):
        size = {} if spec.get("image_size") is None else {"img_size": spec["image_size"]}
        return LibraryModel(spec["model"], backbone.model.state_dict(), size)
    if isinstance(backbone, ResNet):
        return _timm_resnet(backbone, spec, to)
    if isinstance(backbone, RegNetY):
        return _timm_regnet(backbone, spec, to)
    if isinstance(backbone, ViT):
        if backbone.reg_token is not None or backbone.cls_token is None:
            raise _refusal(to, "registers, or no class token (backbone.registers, backbone.class_token), are not tried")
        if backbone.rel_pos_bias is not None:
            raise _refusal(to, "relative positions (backbone.relative_position) are not tried")
        return LibraryModel(*_timm_vit(backbone))
    raise _refusal(to, f"{type(backbone).__name__} is no network of timm", isinstance(backbone, TorchvisionBackbone))


def _timm_resnet(backbone: ResNet, spec: Mapping[str, Any], to: str) -> LibraryModel:
    _require_plain_resnet(spec, to, "timm")
    layers = {"layers": [1, 1, 1, 1]} if spec["depth"] == 10 else {}  # timm's own resnet10t has another stem
    return LibraryModel(f"resnet{18 if layers else spec['depth']}", backbone.state_dict(), layers)


def _timm_regnet(backbone: RegNetY, spec: Mapping[str, Any], to: str) -> LibraryModel:
    from timm.models.regnet import model_cfgs

    if len(backbone.trunk_output) != 4:
        raise _refusal(to, f"timm's RegNets have four stages, this one has {len(backbone.trunk_output)}")
    wanted = dict(zip(("depth", "w0", "wa", "wm", "group_size"), _regnet_parameters(spec), strict=True))
    ratio = spec.get("se_ratio", 0.25) or 0.0
    wanted |= {"se_ratio": ratio}
    wanted |= {"group_min_ratio": 0.9 if spec.get("rounding", "nearest") == "torchvision" else 0.0}
    differing = {
        name: {key: value for key, value in wanted.items() if getattr(cfg, key, 0.0) != value}
        for name, cfg in model_cfgs.items()
        if name.startswith("regnety_" if ratio else "regnetx_") and not name.endswith("_sgn")
    }
    name = _fewest(differing)
    return LibraryModel(name, renamed_to_timm(backbone.state_dict()), differing[name])


def _timm_vit(backbone: ViT) -> tuple[str, State, dict[str, Any]]:
    attention = next(module for module in backbone.modules() if isinstance(module, Attention))
    wanted = (backbone.patch_size, backbone.num_features, len(backbone.blocks), attention.heads)
    keys = ("patch_size", "embed_dim", "depth", "num_heads")
    differing: dict[str, dict[str, Any]] = {
        name: {key: value for key, value, given in zip(keys, wanted, theirs, strict=True) if value != given}
        for name, theirs in VITS.items()
    }
    name = _fewest(differing)
    arguments = differing[name]
    if backbone.image_size != 224:
        arguments["img_size"] = backbone.image_size
    if backbone.pooling == "gap":  # timm would move the norm behind the mean; ours is before it
        arguments |= {"global_pool": "avg", "fc_norm": False}
    if any(name.endswith(".ls1.gamma") for name in backbone.state_dict()):
        arguments["init_values"] = 1.0  # a factor for each channel; its values are in the file
    return name, backbone.state_dict(), arguments


def _fewest(differing: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the name that needs the fewest further arguments; the first of several."""
    return min(differing, key=lambda name: len(differing[name]))


def to_torchvision(backbone: Backbone, spec: Mapping[str, Any], to: str) -> LibraryModel:
    """Returns the model for ``torchvision.models.get_model(name, **arguments)``.

    Its ``classifier`` is replaced by an identity.

    Raises:
        UserError: torchvision has no such network.
    """
    if isinstance(backbone, TorchvisionBackbone):
        return _torchvision_model(backbone, spec)
    if isinstance(backbone, ResNet):
        _require_plain_resnet(spec, to, "torchvision")
        if spec["depth"] in (10, 200):
            reason = f"torchvision has no ResNet of depth {spec['depth']} (backbone.depth)"
            raise _refusal(to, reason, True, timm=True)
        return LibraryModel(f"resnet{spec['depth']}", backbone.state_dict(), classifier="fc")
    if isinstance(backbone, RegNetY):
        return _torchvision_regnet(backbone, spec, to)
    has_timm = isinstance(backbone, ViT | TimmBackbone)
    raise _refusal(to, f"{type(backbone).__name__} is no network of torchvision", has_timm, timm=True)


def _torchvision_model(backbone: TorchvisionBackbone, spec: Mapping[str, Any]) -> LibraryModel:
    import torchvision

    from unlabeled.backbones.torchvision import constructor_arguments

    given = constructor_arguments(spec["model"], spec.get("image_size"))
    theirs = torchvision.models.get_model(spec["model"], weights=None, **given)
    ours = dict(backbone.model.named_modules())
    removed = [
        path
        for path, module in theirs.named_modules()
        if isinstance(module, nn.Linear) and isinstance(ours.get(path), nn.Identity)
    ]
    return LibraryModel(spec["model"], backbone.model.state_dict(), given, removed[-1])


def _torchvision_regnet(backbone: RegNetY, spec: Mapping[str, Any], to: str) -> LibraryModel:
    own = stages(*_regnet_parameters(spec), spec.get("rounding", "nearest"))
    ratio = spec.get("se_ratio", 0.25)
    table = {0.25: REGNETS, None: REGNETS_X}.get(ratio, {})
    same = [name for name, parameters in table.items() if stages(*parameters, "torchvision") == own]
    if not same:
        raise _refusal(
            to, f"torchvision has no RegNet{'Y' if ratio else 'X'} of these parameters", len(own) == 4, timm=True
        )
    return LibraryModel(same[0], backbone.state_dict(), classifier="fc")


def _regnet_parameters(spec: Mapping[str, Any]) -> tuple[int, int, float, float, int]:
    return (spec["depth"], spec["w_0"], spec["w_a"], spec["w_m"], spec["group_width"])


def _require_plain_resnet(spec: Mapping[str, Any], to: str, library: str) -> None:
    if spec["stem"] != "imagenet":
        raise _refusal(to, f"{library}'s ResNets have no 3×3 stem without a max-pool (backbone.stem={spec['stem']})")
    if spec.get("pool") is not None:
        raise _refusal(to, f"{library}'s ResNets have their own max-pool (backbone.pool={spec['pool']})")
    if spec["width"] != 1:
        raise _refusal(to, f"{library}'s ResNets have a stem of 64 channels (backbone.width={spec['width']})")
    if spec.get("padding", "both") != "both":
        raise _refusal(to, f"{library}'s ResNets pad both sides alike (backbone.padding={spec['padding']})")


def _refusal(to: str, reason: str, alike: bool = False, timm: bool = False) -> UserError:
    """Returns the error. ``alike``: the other of timm and torchvision has the network; ``timm``: that one is timm."""
    other = "to=timm, to=huggingface, " if alike and timm else "to=torchvision, " if alike else ""
    return UserError(f"to={to}: {reason}; what it can be written as: {other}to=safetensors, to=onnx or to=torch_export")

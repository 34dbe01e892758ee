"""What a library says of its weights: the network that they are of, and how its images are prepared."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_bytes
from unlabeled.errors import UserError
from unlabeled.views.kernels.crop import Interpolation
from unlabeled.weights.starting.libraries import hub_file

Parts = dict[str, Any]


def describe(origin: str) -> Parts:
    """Returns ``backbone`` and ``views`` as configurations, plain values, as far as the library says them.

    Args:
        origin: ``timm:NAME``, ``torchvision:NAME[:WEIGHTS]`` or ``hf:ORG/NAME``, whose weights have been read.
    """
    library, _, name = origin.partition(":")
    return {"timm": _of_timm, "torchvision": _of_torchvision, "hf": _of_hub}[library](name)


def _of_timm(name: str) -> Parts:
    import timm

    published = timm.models.get_pretrained_cfg(name)
    return _timm_parts(name.partition(".")[0], {} if published is None else published.to_dict())


def _of_torchvision(name: str) -> Parts:
    import torchvision

    model, _, wanted = name.partition(":")
    weights = torchvision.models.get_model_weights(model)
    prepared = (weights[wanted] if wanted else weights.DEFAULT).transforms()
    size = prepared.crop_size[0]
    backbone = _backbone("torchvision.TorchvisionBackbone", model, size if model.startswith("vit_") else None)
    crop, kind = size / prepared.resize_size[0], prepared.interpolation.value
    return {"backbone": backbone} | _views(size, prepared.mean, prepared.std, crop, kind)


def _of_hub(name: str) -> Parts:
    """Reads ``config.json`` in timm's form. It is data of anybody: what it says is checked where it is built."""
    import timm

    found: Any = None
    with suppress(UserError, ValueError, OSError):
        found = parse_json(read_bytes(hub_file(f"hf:{name}", name, "config.json")))
    architecture = found.get("architecture") if isinstance(found, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        return {}
    published, arguments = found.get("pretrained_cfg"), found.get("model_args") or {}
    if not isinstance(published, dict) or not isinstance(arguments, dict) or arguments.keys() - {"img_size"}:
        return {}
    return _timm_parts(architecture, published)


def _timm_parts(model: str, published: Mapping[str, Any]) -> Parts:
    """Of a ``pretrained_cfg``; nothing where it is of other than RGB images."""
    shape = published.get("input_size")
    if not isinstance(shape, Sequence) or len(shape) != 3 or shape[0] != 3:
        return {}
    size = shape[-1]
    backbone = _backbone("timm.TimmBackbone", model, size if published.get("fixed_input_size") else None)
    if published.get("crop_mode", "center") != "center":
        return {"backbone": backbone}
    mean, std, crop, kind = (published.get(key) for key in ("mean", "std", "crop_pct", "interpolation"))
    return {"backbone": backbone} | _views(size, mean, std, crop, kind)


def _backbone(target: str, model: str, image_size: Any) -> Parts:
    named = {"_target_": f"unlabeled.backbones.{target}", "_convert_": "all"}
    return {**named, "model": model, "image_size": image_size}


def _views(size: Any, mean: Any, std: Any, crop: Any, interpolation: Any) -> Parts:
    """How an image is prepared, without random views; nothing where it is interpolated as nothing here does."""
    if interpolation not in get_args(Interpolation) or not isinstance(crop, float | int):
        return {}
    views = {
        "_target_": "unlabeled.views.pipeline.Views",
        "_convert_": "all",
        "size": size,
        "groups": [],
        "mean": list(mean) if isinstance(mean, Sequence) else mean,
        "std": list(std) if isinstance(std, Sequence) else std,
        "evaluation_crop": float(crop),
        "evaluation_interpolation": interpolation,
    }
    return {"views": views}

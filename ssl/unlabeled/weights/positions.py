"""Tables of positions for another number of patches: what changes where a ViT goes on with images of another size."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.objective import Backbone


class _Table(NamedTuple):
    """Where a backbone has its positions."""

    name: str
    first: int  # rows that belong to no patch: class token, registers


def fit_positions(found: dict[str, Tensor], wanted: Mapping[str, Tensor], backbone: Backbone) -> str | None:
    """Interpolates the table of a file to the patches of ``backbone``, in place; bicubic, over a square of patches.

    The backbone then gives for its images what the file's network gives for them where that interpolates by itself:
    as :meth:`ViT._positions` does, without antialiasing; as timm does, with it, where the network is timm's.

    Args:
        found: tensors of a file by the backbone's names; those of another width are left as they are.
        wanted: the backbone's.
        backbone: decides where the table is.

    Returns:
        What was done, or None where there was nothing to do.
    """
    table = _table_of(backbone)
    if table is None or table.name not in found or table.name not in wanted:
        return None
    old, new = found[table.name], wanted[table.name]
    sides = [_side(each, table.first) for each in (old, new)]
    if None in sides or sides[0] == sides[1] or old.shape[-1] != new.shape[-1] or not old.is_floating_point():
        return None
    before, after = int(sides[0] or 0), int(sides[1] or 0)
    first, patches = old[:, : table.first].float(), old[:, table.first :].float()
    plane = patches.transpose(1, 2).reshape(1, -1, before, before)
    plane = F.interpolate(
        plane, (after, after), mode="bicubic", align_corners=False, antialias=isinstance(backbone, TimmBackbone)
    )
    found[table.name] = torch.cat([first, plane.flatten(2).transpose(1, 2)], 1).to(old.dtype)
    return f"positions of {before}×{before} patches were interpolated (bicubic) to {after}×{after}"


def fit_all_positions(found: dict[str, Tensor], wanted: Mapping[str, Tensor], network: nn.Module) -> None:
    """Does the same for every backbone inside ``network``, in place: that of a method, and its teacher."""
    for name, backbone in network.named_modules():
        if isinstance(backbone, Backbone):
            own, like = _below(name, found), _below(name, wanted)
            fit_positions(own, like, backbone)
            found.update({f"{name}.{key}": value for key, value in own.items()})


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): each for key, each in tensors.items() if key.startswith(f"{name}.")}


def add_class_position(found: dict[str, Tensor], backbone: Backbone) -> None:
    """Puts a row of zeros for the class token before a table without one, in place.

    timm's ViTs with registers have added that row to the class token (``no_embed_class``); the sum is the same.
    """
    if isinstance(backbone, ViT) and backbone.own_position and {"pos_embed", "cls_token"} <= found.keys():
        table = found["pos_embed"]
        if _side(table, 0) is not None:
            found["pos_embed"] = F.pad(table, (0, 0, 1, 0))


def _table_of(backbone: Backbone) -> _Table | None:
    if isinstance(backbone, ViT):
        return _Table("pos_embed", backbone.own_position)
    if isinstance(backbone, TimmBackbone):
        model = backbone.model
        first = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 1))
        return _Table("model.pos_embed", first)
    if isinstance(backbone, TorchvisionBackbone):
        return _Table("model.encoder.pos_embedding", 1)
    return None


def _side(table: Tensor, first: int) -> int | None:
    """Patches along a side; None where the table is not of a square of them."""
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[1] <= first:
        return None
    side = math.isqrt(table.shape[1] - first)
    return side if side**2 == table.shape[1] - first else None

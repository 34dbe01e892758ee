"""The student of iBOT and DINOv2: sees large crops with masked patches, and small ones whole.

Only masked patches go through its head: their positions are drawn on the CPU, so that nothing waits for a GPU to count
them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlabeled.backbones.vit import ViT
from unlabeled.core.few_launches import few_launches
from unlabeled.core.seeding import to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.objectives.parts.crops import by_resolution
from unlabeled.objectives.parts.masks import Masks


class MaskedPatches(NamedTuple):
    """Where patches of V large crops of B images are masked, on the device. n is the number of all masked patches.

    On a GPU n is the most that can be, and ``rows`` end in repetitions of the first patch with weight 0: each step has
    the same shapes, as CUDA graphs need and no memory is fragmented by.
    """

    mask: Tensor  # bool [V·B, L]
    rows: Tensor  # int64 [n], of V·B·L
    weights: Tensor  # [n], one over the masked patches of the crop and over V·B: their sum is the share of masked crops


def masked_patches(masks: Masks, most: int, device: torch.device, dtype: torch.dtype) -> MaskedPatches:
    """Prepares masks [V, B, L] of which at most ``most`` patches are masked in any step.

    In NumPy: fake tensors, by which a step's memory is counted, have no values.
    """
    drawn = np.ascontiguousarray(masks.reshape(-1, masks.shape[-1]))
    crops, rows = drawn.nonzero()[0], drawn.ravel().nonzero()[0]
    weights = 1 / drawn.sum(1)[crops] / len(drawn)
    if few_launches(device):
        rows, weights = (np.pad(each, (0, most - len(rows))) for each in (rows, weights))
    kept = weights.astype(np.float64 if dtype == torch.float64 else np.float32)
    return MaskedPatches(*(to_device(torch.from_numpy(each), device) for each in (drawn, rows, kept)))


def patch_weights(masks: Tensor) -> Tensor:
    """Returns weights of patches [V, B, L], of masks 0 or 1 of the same shape: a mean over each crop, then over crops.

    A crop without a masked patch counts 0 in the mean over crops.
    """
    return masks / masks.sum(-1, keepdim=True).clamp(min=1) / masks[..., 0].numel()


def student_tokens(
    backbone: ViT, mask_token: Tensor, large: Sequence[Tensor], small: Sequence[Tensor], masked: MaskedPatches
) -> tuple[Tensor, Tensor]:
    """Returns the class tokens of all crops [(V + v)·B, D], large ones first, and the masked patches [n, D].

    Args:
        backbone: one forward for each resolution.
        mask_token: [1, 1, D].
        large: V crops [B, 3, H, H].
        small: v crops [B, 3, h, h].
        masked: of the large ones.
    """
    tokens = backbone.tokens(torch.cat(list(large)), replace=masked.mask, token=mask_token)
    classes = [tokens[:, 0]] + ([by_resolution(lambda crop: class_token(backbone, crop), small)] if small else [])
    return torch.cat(classes), tokens[:, backbone.prefix :].flatten(0, 1).index_select(0, masked.rows)


def class_token(backbone: ViT, images: Tensor) -> Tensor:
    """Returns the class token after the last norm, [B, D]."""
    return backbone.tokens(images)[:, 0]


def needs_class_token(backbone: Backbone, objective: str) -> ViT:
    """Returns the backbone, a ViT of ours with a class token; raises UserError for another."""
    if not isinstance(backbone, ViT):
        given = type(backbone).__name__
        raise UserError(f"objective={objective} masks patches, and {given} has none: give backbone=vit_small or such")
    if backbone.cls_token is None:
        raise UserError(f"objective={objective} needs a class token: give backbone.class_token=true")
    return backbone


def large_and_small(views: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Divides views into those of the first one's size, and the others."""
    large = [view for view in views if view.shape == views[0].shape]
    return large, [view for view in views if view.shape != views[0].shape]

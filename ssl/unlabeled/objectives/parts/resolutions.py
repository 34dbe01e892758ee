"""Runs a backbone over views of several sizes (multi-crop)."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def by_resolution(backbone: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Returns features of all views, [V·B, F] in order; adjacent views of equal size share one forward.

    As facebookresearch/swav (resnet50.py, forward) and facebookresearch/dino (utils.py, MultiCropWrapper) have it.
    """
    groups = itertools.groupby(views, key=lambda view: view.shape[-2:])
    return torch.cat([backbone(torch.cat(list(group))) for _, group in groups])

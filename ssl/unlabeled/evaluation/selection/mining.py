"""The nearest images of each image, as companions of it (SCAN, arXiv:2005.12320, section 2.1)."""

import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.selection.nearest import nearest_others, unit


def mined_neighbours(features: Features, images: int, k: int) -> Tensor:
    """Finds the k nearest of each image by cosine, exact.

    Args:
        features: x [N, D], of all images that decode.
        images: in the data, of which those without features have only themselves.
        k: neighbours, 1 to N − 1.

    Returns:
        int64 [images, k + 1]: the position of the image itself, then those of the k nearest, nearest first.

    Raises:
        UserError: another k.
    """
    others = len(features.ids) - 1
    if not 1 <= k <= others:
        raise UserError(f"objective.companions.neighbours={k}: an image has {others} others; give no more than that")
    table = torch.arange(images)[:, None].repeat(1, k + 1)
    rows, _ = nearest_others(unit(features.x.numpy()), k)
    table[features.ids, 1:] = features.ids[torch.from_numpy(rows)]
    return table

"""Measures the attention distance of each head of a vision transformer."""

import torch
from torch import Tensor

from unlabeled.evaluation.reporting.attention import Transformer, attentions, find_transformer
from unlabeled.objective import Backbone

AT_A_TIME = 16  # images: attention of 197 tokens and 12 heads takes 4 MB of each


def attention_distance(backbone: Backbone, images: Tensor) -> Tensor | None:
    """Returns the mean distance between a patch and the patches that it attends to, for each head.

    Σ_k a_qk · |q − k| over patches, a_qk without prefix tokens and summing to 1 again, mean over queries and images:
    Dosovitskiy et al. 2020, arXiv:2010.11929, figure 11; Raghu et al. 2021, arXiv:2108.08810, section 4.

    Args:
        backbone: in any mode; it is not changed.
        images: [B, 3, h, w], as the network takes them, on its device.

    Returns:
        Pixels, float64 [blocks, heads] on the CPU; None if the backbone has no such attention (see ``rollout``).
    """
    transformer = find_transformer(backbone)
    if transformer is None:
        return None
    distances = patch_distances(transformer.grid, images.shape[2] / transformer.grid[0]).to(images.device)

    def kept(attention: Tensor) -> Tensor:
        patches = attention[:, :, transformer.prefix :, transformer.prefix :]
        return ((patches * distances).sum(3) / patches.sum(3)).mean(2).sum(0)

    sums = [torch.stack(attentions(backbone, transformer, some, kept)) for some in torch.split(images, AT_A_TIME)]
    return (torch.stack(sums).sum(0) / len(images)).cpu()


def patch_distances(grid: tuple[int, int], patch: float) -> Tensor:
    """Returns the distances between the centres of patches, row by row: pixels, float64 [n, n]."""
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid)) * patch
    return torch.cdist(places, places)


def uniform_attention_distance(transformer: Transformer, size: int) -> float:
    """Returns the distance in pixels of a head that attends equally to all patches; ``size`` is that of images."""
    return float(patch_distances(transformer.grid, size / transformer.grid[0]).mean())

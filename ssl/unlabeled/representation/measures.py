"""Computes all measures of one feature space, and warnings about them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from unlabeled.representation.lidar import lidar
from unlabeled.representation.similarity import alignment, uniformity
from unlabeled.representation.spectrum import alpha_req, normalised_std, ranks

PER_DIMENSION = 4  # images per feature: with fewer, ranks are too low by more than a few per cent
UNIFORMITY_IMAGES = 4096  # images: the number of pairs grows with the square
SHORTEST_WINDOW = 10  # eigenvalues needed to fit a line


def measure_space(features: Tensor, views: Tensor, window: Sequence[int]) -> dict[str, Any]:
    """Returns all measures of one feature space.

    Args:
        features: [N, D].
        views: [n, q, D].
        window: of α-ReQ; it ends earlier if there are fewer eigenvalues, and α is left out if too few remain.
    """
    (n, dim), (lidar_n, q, _) = features.shape, views.shape
    rank = ranks(features)
    first, last = window[0], min(window[1], n - 1, dim)
    fits = last - first + 1 >= SHORTEST_WINDOW
    alpha, r_squared = alpha_req(features, (first, last)) if fits else (None, None)
    return {
        "images": n,
        "dimensions": dim,
        "rankme": rank.rankme,
        "rankme_centred": rank.rankme_centred,
        "effective_rank": rank.effective_rank,
        "alpha": alpha,
        "alpha_r_squared": r_squared,
        "alpha_window": [first, last] if fits else None,
        "lidar": lidar(views),
        "lidar_images": lidar_n,
        "lidar_views": q,
        "alignment": alignment(views[:, 0], views[:, 1]),
        "uniformity": uniformity(features[:UNIFORMITY_IMAGES]),
        "uniformity_images": min(n, UNIFORMITY_IMAGES),
        "feature_std": normalised_std(features),
        "feature_std_isotropic": dim**-0.5,
    }


def measure_warnings(name: str, space: dict[str, Any], window: Sequence[int], there: int) -> list[str]:
    """Returns warnings that a reader of these numbers should know; ``there`` are the images of the whole split."""
    n, dim, found = space["images"], space["dimensions"], []
    if n < PER_DIMENSION * dim:
        enough = (
            f"give images={min(10 * dim, there)}"
            if there >= PER_DIMENSION * dim
            else "the data have too few images for them"
        )
        found.append(
            f"{name}: {n:,} images for {dim:,} dimensions are fewer than {PER_DIMENSION} each: RankMe, effective rank "
            f"and α are those of the images as much as of the network; {enough}"
        )
    if space["lidar_images"] - 1 < dim:
        found.append(
            f"{name}: LiDAR of {space['lidar_images']:,} images cannot pass {space['lidar_images'] - 1:,}, whatever "
            f"the {dim:,} dimensions hold"
        )
    if space["alpha_window"] is None:
        found.append(f"{name}: {min(n - 1, dim)} eigenvalues are too few for a line from rank {window[0]} on: no α")
    elif space["alpha_window"][1] < window[1]:
        found.append(f"{name}: α is fitted over ranks {space['alpha_window'][0]} to {space['alpha_window'][1]} alone")
    return found

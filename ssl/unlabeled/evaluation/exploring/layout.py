"""Where each image stands on a map: a projection of some, and all others among their nearest of these."""

import numpy as np
import torch

from unlabeled.evaluation.knn import neighbours
from unlabeled.evaluation.reporting.figures import MOST_POINTS, project
from unlabeled.evaluation.selection.nearest import Floats

AMONG = 8  # projected images that the place of another depends on; our choice


def map_positions(x: Floats, seed: int) -> tuple[str, Floats]:
    """Projects unit rows [N, D] onto a plane: the method's name, and positions [N, 2] in [0, 1].

    Of at most 2,000 random rows a t-SNE, or UMAP where umap-learn is installed, of fewer than 50 a PCA; t-SNE of 50,000
    would take a quarter of an hour. Each other row stands at the mean of its eight most similar among these, weighted
    by the inverse of their squared distance (Shepard 1968). Distances between groups have no meaning.
    """
    chosen = np.random.default_rng(seed).permutation(len(x))[:MOST_POINTS]
    method, placed = project(torch.from_numpy(x[chosen]).float(), seed)
    positions = np.empty((len(x), 2))
    positions[chosen] = placed
    others = np.setdiff1d(np.arange(len(x)), chosen)
    if len(others):
        positions[others] = _among(x[others], x[chosen], positions[chosen])
    return method, _in_unit_square(positions)


def _among(x: Floats, landmarks: Floats, placed: Floats) -> Floats:
    cosines, rows = neighbours(torch.from_numpy(x), torch.from_numpy(landmarks), min(AMONG, len(landmarks)))
    squares = (2 - 2 * cosines.numpy().astype(np.float64)).clip(min=1e-9)
    weights = 1 / squares
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("nk,nkd->nd", weights, placed[rows.numpy()]))


def _in_unit_square(positions: Floats) -> Floats:
    """Scales both axes alike, and puts the middle into the middle."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    extent = float((high - low).max()) or 1.0
    return np.asarray((positions - (low + high) / 2) / extent + 0.5)

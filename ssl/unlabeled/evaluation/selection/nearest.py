"""The nearest other images of each image, exact, and what follows from them: outliers and near duplicates."""

import numpy as np
import torch
from numpy.typing import NDArray

from unlabeled.errors import UserError
from unlabeled.evaluation.features import unit_rows
from unlabeled.evaluation.knn import neighbours

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
SIMILARITIES = (0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)


def unit(x: Floats) -> Floats:
    """Scales rows [N, D] to length 1, so that distances between them go by the cosine; rows of zeros stay."""
    return np.asarray(unit_rows(torch.from_numpy(np.ascontiguousarray(x))).numpy())


def nearest_others(x: Floats, k: int, distance: str = "product") -> tuple[Ints, Floats]:
    """Finds the k nearest other rows of each: rows [N, k] and similarities [N, k], nearest first.

    Args:
        x: features [N, D].
        k: 1 to N − 1; more raises UserError.
        distance: ``product``, the scalar product, which is the cosine of unit rows; ``cosine``; ``euclidean``, minus
            the squared distance in float64. Of equally near rows the first come first.
    """
    if not 1 <= k < len(x):
        raise UserError(f"k={k}: allowed: 1 to {len(x) - 1}")
    rows = torch.from_numpy(np.ascontiguousarray(x))
    similarity, index = neighbours(rows, rows, k + 1, distance=distance)
    own = index == torch.arange(len(x))[:, None]
    own[~own.any(dim=1), -1] = True  # so many equal it that it is not among them itself
    shape = len(x), k
    return index[~own].view(shape).numpy(), similarity[~own].view(shape).numpy()


def outlier_scores(cosines: Floats, k: int = 10) -> Floats:
    """Says how unusual each image is [N]: 1 minus the mean cosine with its k nearest others.

    Ramaswamy et al. 2000 rank by the distance of the k-th; the mean is Angiulli and Pizzuti 2002.

    Args:
        cosines: with the nearest others [N, K], nearest first; fewer than k columns are all taken, none give zeros.
        k: 1 or more.
    """
    near = cosines[:, :k].astype(np.float64)
    return 1 - near.mean(axis=1) if near.shape[1] else np.zeros(len(near))


def usual_similarity(cosines: Floats) -> float:
    """Returns from which cosine on images are called near duplicates: the lowest of some that few images reach.

    What is near differs between networks: of one that has hardly been trained all images are alike. Few are a fiftieth
    of the images, or four (our choice).

    Args:
        cosines: with the nearest others [N, K], nearest first.
    """
    nearest = cosines[:, 0] if cosines.shape[1] else np.zeros(len(cosines))
    most = max(4.0, len(cosines) / 50)
    return next((each for each in SIMILARITIES if int((nearest >= each).sum()) <= most), 1.0)


def duplicate_groups(rows: Ints, cosines: Floats, similarity: float) -> list[list[int]]:
    """Groups images that a chain of near duplicates joins: rows of each group, ascending; the largest group first.

    Args:
        rows: the nearest others of each image [N, K].
        cosines: with each of them [N, K].
        similarity: least cosine of two near duplicates.
    """
    first = list(range(len(rows)))  # of the same group, or on the way to it

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = row = first[first[row]]
        return row

    for one, place in np.argwhere(cosines >= similarity).tolist():
        low, high = sorted((root(one), root(int(rows[one, place]))))
        first[high] = low
    groups: dict[int, list[int]] = {}
    for row in range(len(rows)):
        groups.setdefault(root(row), []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group[0]))

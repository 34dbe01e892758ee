"""Typical images: those by which a first label tells most (TypiClust: Hacohen et al. 2022, arXiv 2202.02794)."""

from collections.abc import Sequence

import numpy as np

from unlabeled.errors import UserError
from unlabeled.evaluation.selection.clusters import kmeans
from unlabeled.evaluation.selection.nearest import Floats, Ints, nearest_others

NEIGHBOURS = 20  # section 3.2: K = 20
MOST_CLUSTERS = 500  # appendix F.1
SMALLEST = 5  # members of a cluster that is asked first; the same place drops smaller ones


def typicality(x: Floats, k: int = NEIGHBOURS) -> Floats:
    """Returns how typical each row of x [N, D] is [N]: the inverse of its mean distance to the k nearest others.

    Equation 4 of the paper, Euclidean distance; of fewer others where there are fewer. Infinite where all of them are
    equal to it; 0 for a row alone.
    """
    k = min(k, len(x) - 1)
    if k < 1:
        return np.zeros(len(x))
    mean = np.sqrt(-nearest_others(x, k, "euclidean")[1].clip(max=0)).mean(axis=1)
    with np.errstate(divide="ignore"):
        return np.asarray(1 / mean)


def typical_rows(x: Floats, count: int, labelled: Sequence[int] = (), seed: int = 0) -> Ints:
    """Chooses ``count`` rows to be labelled, in the order in which to ask for them.

    Algorithm 1: as many clusters as there are labels, old and new (500 at most); again and again the cluster with the
    fewest labels, of these the largest, gives its most typical row, the neighbours being those in the cluster. Clusters
    of fewer than five rows come after all others.

    Args:
        x: features [N, D]; the paper takes rows of length 1.
        count: 1 to the number of rows without a label.
        labelled: rows that have a label.
        seed: of k-means.

    Raises:
        UserError: fewer rows without a label than ``count``.
    """
    check_count(count, len(x), labelled)
    clusters = kmeans(x, min(len(labelled) + count, MOST_CLUSTERS, len(x)), seed)
    labels = np.bincount(clusters.assigned[list(labelled)], minlength=len(clusters))
    left = [_most_typical_first(x, clusters.members(number), labelled) for number in range(len(clusters))]
    sizes, chosen = np.bincount(clusters.assigned), []  # clusters are numbered from the largest on
    for _ in range(count):
        asked = min(
            (number for number in range(len(clusters)) if left[number]),
            key=lambda number: (sizes[number] < SMALLEST, labels[number], number),
        )
        chosen.append(left[asked].pop(0))
        labels[asked] += 1
    return np.array(chosen, np.int64)


def _most_typical_first(x: Floats, rows: Ints, labelled: Sequence[int]) -> list[int]:
    found = rows[np.argsort(-typicality(x[rows]), kind="stable")]
    return list(found[~np.isin(found, list(labelled))].tolist())


def check_count(count: int, images: int, labelled: Sequence[int]) -> None:
    """Raises UserError where ``count`` rows cannot be chosen among those without a label."""
    left = images - len(set(labelled))
    if not 1 <= count <= left:
        raise UserError(f"n={count}: allowed: 1 to {left}, the number of images without a label")

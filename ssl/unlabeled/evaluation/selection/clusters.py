"""Clusters of images, by k-means of features or by a method itself, and the images in the middle of each."""

import warnings
from dataclasses import dataclass
from math import sqrt

import numpy as np

from unlabeled.errors import UserError
from unlabeled.evaluation.selection.nearest import Floats, Ints

MOST_OF_LLOYD = 50  # clusters; beyond, mini batches, as the code of TypiClust has it (avihu111/TypiClust, typiclust.py)
BATCH = 5000  # the same source
STARTS = 3  # our choice: the best of three k-means++ starts; ten took 40 s for 50,000 images


@dataclass(frozen=True)
class Clusters:
    """The clusters of N images, numbered from the largest to the smallest."""

    assigned: Ints  # [N], 0 to k − 1
    centres: Floats  # [k, D], the mean of each
    distances: Floats  # [N], of each image to the centre of its own; −ln of its probability where ``own``
    own: bool = False  # whether they are those of the method, and not of k-means

    def __len__(self) -> int:
        return len(self.centres)

    def members(self, cluster: int) -> Ints:
        """Returns the rows of one cluster, the most central first."""
        rows = np.flatnonzero(self.assigned == cluster)
        return rows[np.argsort(self.distances[rows], kind="stable")]


def kmeans(x: Floats, k: int, seed: int = 0) -> Clusters:
    """Divides rows [N, D] into at most k clusters, none of them empty; fewer where fewer rows differ.

    By scikit-learn: Lloyd's algorithm from the best of three k-means++ starts, in mini batches for more than 50
    clusters. The same seed gives the same clusters. Raises UserError unless 1 ≤ k ≤ N.
    """
    if not 1 <= k <= len(x):
        raise UserError(f"clusters={k}: allowed: 1 to {len(x)}, the number of images")
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    options = {"n_clusters": k, "n_init": STARTS, "random_state": seed}
    lloyd = k <= MOST_OF_LLOYD
    algorithm = KMeans(**options) if lloyd else MiniBatchKMeans(batch_size=BATCH, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than k: said above
        found = algorithm.fit_predict(x)
    return _by_size(x, np.asarray(found, np.int64))


def own_clusters(x: Floats, log_probabilities: Floats) -> Clusters:
    """Gives each row [N, D] the likeliest of C clusters, by log probabilities [N, C]; empty clusters are left out."""
    found = _by_size(x, log_probabilities.argmax(axis=1))
    return Clusters(found.assigned, found.centres, -log_probabilities.max(axis=1), own=True)


def _by_size(x: Floats, found: Ints) -> Clusters:
    _, first, inverse, sizes = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    assigned = rank[inverse]
    centres, distances = np.empty((len(sizes), x.shape[1])), np.empty(len(x))
    for cluster in range(len(sizes)):
        rows = np.flatnonzero(assigned == cluster)
        centres[cluster] = x[rows].mean(axis=0, dtype=np.float64)
        distances[rows] = np.linalg.norm(x[rows] - centres[cluster], axis=1)
    return Clusters(assigned, centres, distances)


def usual_number(images: int) -> int:
    """Returns how many clusters are shown of so many images: √(N/2), at most 30 (our choice: what a person reads)."""
    return max(1, min(30, round(sqrt(images / 2))))

"""What there is to say of images without a label, all of it from their features."""

from dataclasses import dataclass

import numpy as np

from unlabeled.evaluation.embedding.embeddings import Embeddings
from unlabeled.evaluation.exploring.layout import map_positions
from unlabeled.evaluation.selection.clusters import Clusters, kmeans, usual_number
from unlabeled.evaluation.selection.k_center import k_center_rows
from unlabeled.evaluation.selection.nearest import Floats, Ints, nearest_others, outlier_scores, unit
from unlabeled.evaluation.selection.typicality import typical_rows

NEIGHBOURS = 12  # of each image on the page


@dataclass(frozen=True)
class Findings:
    """Of N images; rows are numbers of images."""

    embeddings: Embeddings
    method: str  # of the map
    positions: Floats  # [N, 2] in [0, 1]
    near: Ints  # [N, k], the most similar other images
    cosines: Floats  # [N, k], with them
    clusters: Clusters
    unusual: Floats  # [N], the more the less similar are the ten nearest
    typical: Ints  # [n], to be labelled first, in this order
    covering: Ints  # [n], likewise


def find(embeddings: Embeddings, clusters: int | Clusters | None, label_next: int, seed: int) -> Findings:
    """Finds neighbours, clusters, outliers and what to label; by cosine, the same for the same seed.

    Args:
        embeddings: of N ≥ 1 images.
        clusters: how many, at most N; None: as :func:`usual_number` says; or those that the method makes.
        label_next: images to label, of which there are at most N.
        seed: of the map and of k-means.

    Raises:
        UserError: more clusters than images.
    """
    x = unit(embeddings.x)
    k = min(NEIGHBOURS, len(x) - 1)
    near, cosines = nearest_others(x, k) if k else (np.zeros((len(x), 0), np.int64), np.zeros((len(x), 0)))
    method, positions = map_positions(x, seed)
    wanted = min(label_next, len(x))
    return Findings(
        embeddings,
        method,
        positions,
        near,
        cosines,
        clusters if isinstance(clusters, Clusters) else kmeans(x, clusters or usual_number(len(x)), seed),
        outlier_scores(cosines),
        typical_rows(x, wanted, seed=seed),
        k_center_rows(x, wanted)[0],
    )

"""Clusters without labels, by k-means of features or those of the method itself, and named afterwards."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, from_numpy

from unlabeled.core.ranges import AtLeastTwo, Count, Seed
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, require_finite, top1, unit_rows
from unlabeled.evaluation.probe import Score, with_kind
from unlabeled.evaluation.probes.linear import standardise, unseen_class_notes

Counts = npt.NDArray[np.int64]
SCALES = ("l2", "standardised")


class KMeans:
    """Lloyd's k-means on train features without their labels; a test image belongs to the nearest centre.

    Each cluster gets a class by the train images in it: one to one by the Hungarian method (Kuhn 1955) where there are
    at most as many clusters as classes, else each the class of most of its images. Labels name clusters, they do not
    make them.

    Args:
        clusters: their number; None for as many as there are classes among the train images.
        scale: ``l2``, rows of length 1, or ``standardised``, columns of mean 0 and deviation 1 over train.
        restarts: k-means++ starts, of which the one of least inertia is kept.
        max_iter: Lloyd steps of one start.
        seed: of the starts.
        features: the kind to cluster (``Backbone.kinds``).
    """

    def __init__(
        self,
        clusters: AtLeastTwo | None,
        scale: str,
        restarts: Count,
        max_iter: Count,
        seed: Seed,
        features: str = "last",
    ) -> None:
        if clusters is not None and clusters < 2:
            raise UserError(f"probe.kmeans.clusters={clusters}: must be at least 2, or null for the number of classes")
        if scale not in SCALES:
            raise UserError(f"probe.kmeans.scale={scale}: allowed are {' and '.join(SCALES)}")
        for name, value in (("restarts", restarts), ("max_iter", max_iter)):
            if value < 1:
                raise UserError(f"probe.kmeans.{name}={value}: must be at least 1")
        self.clusters, self.scale = clusters, scale
        self.restarts, self.max_iter, self.seed = restarts, max_iter, seed
        self.needs, self.needs_key, self.kinds = clusters or 1, "clusters", (features,)

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score; its ``nmi`` and ``ari`` compare clusters with the classes of test, whatever their names.

        ``matched_on_test_top1`` names the clusters by the test labels instead, as IIC and SCAN publish it: an upper
        bound, to compare with theirs.
        """
        train, test = (each.of(self.kinds[0]) for each in (train, test))
        k = self.clusters or int((train.labels.bincount() > 0).sum())
        of_train, of_test, notes = self._assign(train.x, test.x, k)
        score = score_clusters(of_train, of_test, train.labels, test.labels, k, num_classes)
        chosen: dict[str, Any] = {"chosen_on": "nothing", "restarts": self.restarts, "seed": self.seed}
        protocol = with_kind(f"kmeans/{self.scale}/{score.protocol}", self.kinds[0])
        return [replace(score, protocol=protocol, chosen=chosen, notes=notes + score.notes)]

    def _assign(self, train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor, list[str]]:
        """Returns the cluster of each train and test image, int64 on the CPU. UserError on non-finite features."""
        from sklearn.cluster import KMeans as Lloyd
        from sklearn.exceptions import ConvergenceWarning

        if k > len(train):
            raise UserError(f"probe.kmeans.clusters={k}: there are only {len(train)} train images")
        require_finite("probe.kmeans", train, test)
        x, queries = (part.float().cpu().numpy() for part in self._scaled(train, test))
        model = Lloyd(k, n_init=self.restarts, max_iter=self.max_iter, random_state=self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # reported in a note instead
            of_train = model.fit_predict(x)
        used, notes = len(np.unique(of_train)), []
        if used < k:
            notes.append(f"Only {used} of {k} clusters have a train image: the features have collapsed.")
        return from_numpy(of_train).long(), from_numpy(model.predict(queries)).long(), notes

    def _scaled(self, train: Tensor, test: Tensor) -> list[Tensor]:
        return [unit_rows(train), unit_rows(test)] if self.scale == "l2" else standardise(train, test)


class OwnClusters:
    """The clusters that the run's method gives images (``HasClusters``), in place of features log probabilities [N, k].

    They are named and scored as those of :class:`KMeans`. Nothing is fitted.
    """

    needs = 1

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score, with the metrics of :meth:`KMeans.fit_predict`."""
        require_finite("probe.clusters", train.x, test.x)
        k = train.x.shape[1]
        of_train, of_test = (each.x.argmax(1).cpu() for each in (train, test))
        score = score_clusters(of_train, of_test, train.labels, test.labels, k, num_classes)
        used = int((of_train.bincount() > 0).sum())
        notes = [f"Only {used} of {k} clusters have a train image."] if used < k else []
        chosen: dict[str, Any] = {"chosen_on": "nothing"}
        return [replace(score, protocol=f"clusters/{score.protocol}", chosen=chosen, notes=notes + score.notes)]


def score_clusters(
    of_train: Tensor, of_test: Tensor, train_labels: Tensor, test_labels: Tensor, k: int, num_classes: int
) -> Score:
    """Scores the clusters of images, int64 on the CPU, by their labels; the protocol says how they were named.

    ``nmi`` and ``ari`` compare the clusters of test images with their classes. Its notes are on classes alone.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    classes = count_classes_per_cluster(of_train, train_labels, k, num_classes)
    named, how = name_clusters(classes)
    predictions = from_numpy(named)[of_test].to(test_labels.device)
    labels = test_labels.cpu()
    on_test, _ = name_clusters(count_classes_per_cluster(of_test, labels, k, num_classes))
    metrics = {
        "nmi": float(normalized_mutual_info_score(labels, of_test)),
        "ari": float(adjusted_rand_score(labels, of_test)),
        "matched_on_test_top1": top1(from_numpy(on_test)[of_test], labels),
    }
    notes = unseen_class_notes(int((classes.sum(axis=0) > 0).sum()), num_classes)
    protocol, accuracy = f"k={k}/{how}-on-train", top1(predictions, test_labels)
    return Score(protocol, accuracy, notes=notes, predictions=predictions, metrics=metrics)


def count_classes_per_cluster(clusters: Tensor, labels: Tensor, k: int, num_classes: int) -> Counts:
    """Counts the images of each class in each cluster, [k, num_classes]."""
    table = (clusters.cpu() * num_classes + labels.cpu()).bincount(minlength=k * num_classes)
    return table.view(k, num_classes).numpy()


def name_clusters(images: Counts) -> tuple[Counts, str]:
    """Returns a class for each cluster [k] of ``images`` [k, C], and the method: ``hungarian`` or ``majority``.

    Classes without an image are never given. Hungarian: the assignment, no class twice, under which most images are
    right. Majority where clusters outnumber the classes: each for itself, the first class among equals.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    seen = images.sum(axis=0).nonzero()[0]
    if len(images) > len(seen):
        return seen[images[:, seen].argmax(axis=1)], "majority"
    rows, columns = linear_sum_assignment(images[:, seen], maximize=True)
    named = np.empty(len(images), dtype=np.int64)
    named[rows] = seen[columns]
    return named, "hungarian"

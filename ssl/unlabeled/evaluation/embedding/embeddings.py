"""Embeddings in memory, and what is asked of them without a label: neighbours, clusters, outliers, duplicates.

All of it is by cosine similarity, exact and the same at every call.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.formats import save
from unlabeled.evaluation.embedding.rows import Chunk, Floats, Ints, rows_at_a_time
from unlabeled.evaluation.features import unit_rows
from unlabeled.evaluation.selection.nearest import nearest_others, outlier_scores

MOST_PAIRS = 1_000_000  # of duplicates: a collapsed network makes all images alike


@dataclass(frozen=True)
class Embeddings:
    """Features of N images."""

    x: Floats  # [N, D]
    names: list[str]  # as the data call them
    labels: Ints  # [N], -1 where there is none
    splits: list[str]  # train, test or another of each
    classes: list[str]  # names in the order of labels; [] where none is known

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int]:
        """Returns N and D."""
        return self.x.shape[0], self.x.shape[1]

    def rows(self, chosen: Any) -> "Embeddings":
        """Returns the embeddings of some images: a mask bool [N], or their rows [n]."""
        found = np.arange(len(self))[chosen]
        names, splits = ([values[row] for row in found] for values in (self.names, self.splits))
        return replace(self, x=self.x[found], names=names, labels=self.labels[found], splits=splits)

    def chunks(self) -> Iterator[Chunk]:
        """Yields all rows in order, some at a time."""
        most = rows_at_a_time(self.shape[1])
        for first in range(0, len(self), most):
            some = slice(first, first + most)
            yield Chunk(self.names[some], self.labels[some], self.splits[some], self.x[some])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a file as ``unlabeled embed`` does: .parquet, .csv, .npy, .npz or .safetensors, by the ending.

        Raises:
            UserError: another ending, or the file cannot be written.
        """
        return save(Path(path).expanduser(), self)[0]

    def neighbours(self, k: int) -> tuple[Ints, Floats]:
        """Finds the k most similar other images of each: rows [N, k] and cosines [N, k], most similar first.

        Of equally similar ones the first come first. Raises UserError unless 1 ≤ k < N.
        """
        _check(k, "k", 1, len(self) - 1)
        return nearest_others(self._unit().numpy(), k)

    def clusters(self, k: int, seed: int = 0) -> Ints:
        """Assigns each image to a cluster, 0 to k − 1, [N].

        By scikit-learn's k-means of unit rows, k-means++ and the best of ten starts. Raises UserError unless 1 ≤ k ≤ N.
        """
        _check(k, "k", 1, len(self))
        from sklearn.cluster import KMeans

        found = KMeans(k, n_init=10, random_state=seed).fit_predict(self._unit().numpy())
        return np.asarray(found, np.int64)

    def outliers(self, k: int = 10) -> tuple[Ints, Floats]:
        """Ranks all images, the most unusual first: their rows [N], and how unusual each of them is [N].

        By :func:`outlier_scores`: 1 minus the mean cosine with the k most similar others, of fewer where there are
        fewer.
        """
        if len(self) < 2:
            return np.arange(len(self)), np.zeros(len(self), np.float32)
        _check(k, "k", 1, None)
        unusual = outlier_scores(self.neighbours(min(k, len(self) - 1))[1], k).astype(np.float32)
        order = np.argsort(-unusual, kind="stable")
        return order, unusual[order]

    def duplicates(self, similarity: float = 0.99) -> tuple[Ints, Floats]:
        """Finds pairs of images whose cosine is at least ``similarity``, most similar first: rows [P, 2], cosines [P].

        Every pair is compared. Raises UserError for a ``similarity`` outside of (0, 1] and at more than a million
        pairs.
        """
        if not 0 < similarity <= 1:
            raise UserError(f"similarity={similarity}: must be above 0 and at most 1")
        found = list(self._pairs(similarity))
        pairs = torch.cat([torch.zeros(0, 2, dtype=torch.long), *(pair for pair, _ in found)])
        cosines = torch.cat([torch.zeros(0), *(cosine for _, cosine in found)])
        order = cosines.argsort(descending=True, stable=True)
        return pairs[order].numpy(), cosines[order].numpy()

    def _pairs(self, similarity: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        unit, count = self._unit(), 0
        smallest = similarity - 4 * torch.finfo(torch.float32).eps  # of equal rows 1 − 6e-8 may come out
        for first in range(0, len(self), 1024):
            cosines = (unit[first : first + 1024] @ unit[first:].T).triu_(diagonal=1)
            pairs = (cosines >= smallest).nonzero()
            count += len(pairs)
            if count > MOST_PAIRS:
                raise UserError(
                    f"similarity={similarity}: more than {MOST_PAIRS:,} pairs are so similar; give a higher one"
                )
            yield pairs + first, cosines[pairs[:, 0], pairs[:, 1]]

    def _unit(self) -> torch.Tensor:
        return unit_rows(torch.from_numpy(np.ascontiguousarray(self.x)))


def _check(value: int, name: str, lowest: int, highest: int | None) -> None:
    if not isinstance(value, int) or value < lowest or (highest is not None and value > highest):
        allowed = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
        raise UserError(f"{name}={value}: allowed: {allowed}")

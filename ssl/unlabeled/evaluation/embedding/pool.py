"""Features of images in memory; of a pool no label is read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from unlabeled.evaluation.embedding.progress import ImageProgress
from unlabeled.evaluation.embedding.rows import Floats, Ints
from unlabeled.evaluation.embedding.stream import Embedder, Images, stream
from unlabeled.evaluation.features import Features


def pool_features(embedder: Embedder, images: Images, log: Callable[[str], None]) -> Features:
    """Computes features of all images that decode, in order; ``ids`` are their positions, every label is −1.

    Raises UserError as :func:`unlabeled.evaluation.embedding.stream.stream`.
    """
    rows, x = rows_in_memory(embedder, images, log)
    ids = torch.from_numpy(rows)
    return Features(torch.from_numpy(x), torch.full_like(ids, -1), ids)


def rows_in_memory(embedder: Embedder, images: Images, log: Callable[[str], None]) -> tuple[Ints, Floats]:
    """Returns positions int64 [N] of the images that decode, and their features [N, D].

    Raises UserError as :func:`unlabeled.evaluation.embedding.stream.stream`.
    """
    kept: list[Any] = []
    found: list[Floats] = []
    progress = ImageProgress(sum(images.batches()), 0, log)

    def take(decoded: Any, x: Floats | None) -> None:
        kept.append(decoded)
        found.extend([] if x is None else [x])
        progress(len(decoded))

    try:
        stream(embedder, images, take)
    finally:
        progress.close()
    return np.flatnonzero(np.concatenate(kept)), np.concatenate(found)

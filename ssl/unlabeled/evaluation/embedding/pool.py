"""Features of a pool of images, none of whose labels is read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from unlabeled.evaluation.embedding.progress import ImageProgress
from unlabeled.evaluation.embedding.rows import Floats
from unlabeled.evaluation.embedding.stream import Embedder, Images, stream
from unlabeled.evaluation.features import Features


def pool_features(embedder: Embedder, images: Images, log: Callable[[str], None]) -> Features:
    """Computes features of all images that decode, in order; ``ids`` are their positions, every label is −1.

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
    ids = torch.from_numpy(np.flatnonzero(np.concatenate(kept)))
    return Features(torch.from_numpy(np.concatenate(found)), torch.full_like(ids, -1), ids)

"""Images that a report shows: decoded again by their ids, and kept as features are."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from unlabeled.data.canvas import canvas
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.source import Source, Splits
from unlabeled.evaluation.cache import Key, TensorCache, code_hash
from unlabeled.evaluation.gallery import ImagesOf
from unlabeled.views.pipeline import Views

# "train" or "test" and ids in its source → uint8 [n, 3, H, W], and int64 [n, 2], or None where all fill H × W
Decode = Callable[[str, Sequence[int]], tuple[Tensor, Tensor | None]]


def decoder(splits: Splits, kept: TensorCache | None) -> Decode:
    """How to get images by their ids. The same ones asked for again are taken from ``kept``: none is decoded then."""

    @cache  # of a million files it takes seconds
    def data(split: str) -> str | None:
        return fingerprint(_source(splits, split))

    def decode(split: str, ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        source = _source(splits, split)
        if kept is None or data(split) is None:
            return _decoded(source, ids)
        key: Key = {"decoded": list(ids), "data": data(split), "code": code_hash()}
        found = kept.get(key)
        if found is not None:
            return found[0]["images"], found[0].get("sizes")
        images, sizes = _decoded(source, ids)
        kept.put(key, {"images": images} | ({} if sizes is None else {"sizes": sizes}))
        return images, sizes

    return decode


def images_of(decode: Decode, views: Views) -> ImagesOf:
    """The same as evaluation sees them: float [n, 3, h, w] in [0, 1]."""

    def image(split: str, ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return views.as_pixels(views.plain(*decode(split, ids)))

    return image


def _decoded(source: Source, ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    return canvas([source.decode(id) for id in ids])


def _source(splits: Splits, split: str) -> Source:
    source = splits.train if split == "train" else splits.test
    assert source is not None
    return source

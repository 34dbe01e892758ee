"""Cache of the few decoded images in a report: a second evaluation of the same checkpoint reads none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unlabeled.data.source import Splits
from unlabeled.evaluation.cache import TensorCache, code_hash

Decode = Callable[[str, Sequence[int]], list[Tensor]]  # "train" or "test" and ids in it → uint8 [3, h, w] each
MOST = 500  # images kept per data set, enough for about five reports
SMALL, AT_ONCE = ", small", 32  # ending of a small image's name, and images that are made small together


class ReportImageCache:
    """Decodes images of a data set, or takes those that an earlier report has shown.

    Args:
        splits: the data set.
        prints: the fingerprint of each split, None where it has none.
        cache: stores the images; None: they are not stored.
        views: how small images are cut, as plain values.
    """

    def __init__(
        self, splits: Splits, prints: Mapping[str, str | None], cache: TensorCache | None, views: Any = None
    ) -> None:
        self._sources = {"train": splits.train} | ({} if splits.test is None else {"test": splits.test})
        self._cache = None if cache is None or None in prints.values() else cache
        self._key = {"shown images of": dict(prints), "views": views, "code": code_hash()}
        found = None if self._cache is None else self._cache.get(self._key)
        self._images = {} if found is None else found[0]
        self._small = {name: image for name, image in self._images.items() if name.endswith(SMALL)}
        self._images = {name: image for name, image in self._images.items() if name not in self._small}
        self._new = False

    def __call__(self, split: str, ids: Sequence[int]) -> list[Tensor]:
        """Returns images in the order of ``ids``."""
        return [self._one(split, id) for id in ids]

    def small(self, split: str, ids: Sequence[int], shrink: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """Returns small images [n, 3, h, w] in the order of ``ids``; the large ones are not kept.

        ``shrink`` makes them, uint8, of a few decoded images; it must be the same each time.
        """
        missing = [id for id in ids if f"{split} {id}{SMALL}" not in self._small]
        for first in range(0, len(missing), AT_ONCE):
            some = missing[first : first + AT_ONCE]
            made = shrink([self._sources[split].decode(id) for id in some])
            self._small |= {f"{split} {id}{SMALL}": image.clone() for id, image in zip(some, made, strict=True)}
            self._new = True
        return torch.stack([self._small[f"{split} {id}{SMALL}"] for id in ids])

    def keep(self) -> None:
        """Writes the decoded images, for the next report."""
        if self._new and self._cache is not None:
            self._cache.put(self._key, dict(list(self._images.items())[-MOST:]) | self._small)

    def _one(self, split: str, id: int) -> Tensor:
        name = f"{split} {id}"
        if name not in self._images:
            self._images[name] = self._sources[split].decode(id)
            self._new = True
        return self._images[name]

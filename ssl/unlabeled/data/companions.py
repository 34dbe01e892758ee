"""Gives each image of a batch a companion: one of its neighbours (SCAN, arXiv:2005.12320), or an image of its class.

The companion of a row is a function of (seed, batch, place in the global batch, image), so that nothing has to be saved
and any number of processes and workers sees the same ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unlabeled.core.ranges import Count, FilePath
from unlabeled.core.reading import require_regular
from unlabeled.core.seeding import derive_seed
from unlabeled.data.order import BatchOrder
from unlabeled.data.source import Source
from unlabeled.errors import UserError

_COMPANIONS = 0xC0B1  # gives these draws other random numbers than the order of batches has


@dataclass(frozen=True)
class Companions:
    """Settings of the companions.

    Args:
        neighbours_file: safetensors with ``neighbours``, int64 [N, k]: for each image of the training split the
            positions of its neighbours there, among which one is drawn; SCAN lists the image itself too. None: they are
            found as ``neighbours`` says.
        views: how many views are made of each companion.
        neighbours: how many of the nearest images the run finds for each image before its first step, by the network
            that it starts from. None: another image of its class is drawn, which takes labels.
        own_views: whether the last ``views`` views are those of companions, and the batch has the others; if not, the
            companions have the first views of the batch.
    """

    neighbours_file: FilePath | None
    views: Count
    neighbours: Count | None = None
    own_views: bool = False

    def of_batch(self, views: int) -> int:
        """Returns how many of ``views`` views are made of the batch, the first of them."""
        return views - self.views if self.own_views else views

    def own(self, views: int) -> range:
        """Returns the numbers of the views that are made of companions, of ``views`` in all."""
        return range(views - self.views, views) if self.own_views else range(self.views)

    @property
    def mined(self) -> bool:
        """Returns whether the run finds the neighbours itself."""
        return self.neighbours_file is None and self.neighbours is not None

    def choice(self, source: Source) -> "Choice":
        """Returns what draws companions; reads the file, or labels, and no image.

        Raises:
            UserError: the file is none of this kind or does not fit the images; or there are no labels.
        """
        if self.neighbours_file is not None:
            return Neighbours(self._read(Path(self.neighbours_file), len(source)))
        if not bool((source.labels >= 0).any()):
            raise UserError("objective.companions: the training images have no labels; give a neighbours_file")
        return _SameClass(source.labels)

    def _read(self, path: Path, images: int) -> Tensor:
        from safetensors.torch import load_file

        given = f"objective.companions.neighbours_file={path}"
        try:
            require_regular(path)
            table = load_file(path)["neighbours"]
        except Exception as error:  # of any kind: the file may be anything
            raise UserError(f"{given}: no file of safetensors with a tensor neighbours ({error})") from error
        if table.dtype != torch.int64 or table.ndim != 2 or len(table) != images or not table.numel():
            raise UserError(f"{given}: neighbours is {table.dtype} {list(table.shape)}; give int64 [{images}, k]")
        if int(table.min()) < 0 or int(table.max()) >= images:
            raise UserError(f"{given}: names images that are none of the {images} training images")
        return table


@runtime_checkable
class NeedsCompanions(Protocol):
    """Protocol of an objective that needs a companion of each image of a batch."""

    companions: Companions


class Choice(Protocol):
    """Draws companions."""

    def __call__(self, images: Tensor, shares: Tensor) -> Tensor:
        """Maps positions int64 [n] and uniform numbers in [0, 1) [n] to positions of companions int64 [n]."""
        ...


class Neighbours:
    """Draws uniformly among the images at positions int64 [N, k] in the row of an image."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, images: Tensor, shares: Tensor) -> Tensor:
        rows = self.table[images]
        return rows.gather(1, (shares * rows.shape[1]).long()[:, None]).flatten()


class _SameClass:
    """Draws uniformly among the other images of the class; an image that is alone, or has no label, has itself."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.members = labels.argsort(stable=True)  # class after class
        self.place = self.members.argsort()
        self.sizes = (labels + 1).bincount()  # first of those without a label
        self.starts = self.sizes.cumsum(0) - self.sizes

    def __call__(self, images: Tensor, shares: Tensor) -> Tensor:
        kind = self.labels[images] + 1
        others = (self.sizes[kind] - 1).clamp(min=0)
        own = self.place[images] - self.starts[kind]
        drawn = (shares * others).long()
        drawn += (drawn >= own).long()
        found = (kind > 0) & (others > 0)
        return torch.where(found, self.members[self.starts[kind] + torch.where(found, drawn, own)], images)


class CompanionOrder:
    """Yields the rows of the companions of this process's images, batch by batch.

    Args:
        choice: what draws them.
        order: of the batches.
        seed: of the run.
        ids: int64 [M], ascending: position of each row in the training split. A companion that is not among them,
            since it was corrupt, is replaced by the image itself.
    """

    def __init__(self, choice: Choice, order: BatchOrder, seed: int, ids: Tensor) -> None:
        self.choice, self.order, self.seed, self.ids = choice, order, seed, ids

    def __iter__(self) -> Iterator[list[int]]:
        number = self.order.next_step() * self.order.accumulate
        for rows in self.order:
            yield self.of(rows, number)
            number += 1

    def of(self, rows: list[int], number: int) -> list[int]:
        """Returns the companions of the ``rows`` of this process in batch ``number``."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _COMPANIONS, number))
        shares = torch.rand(self.order.batch_size, generator=generator, dtype=torch.float64)
        own = shares[self.order.rank * len(rows) :][: len(rows)]
        asked = torch.tensor(rows)
        wanted = self.choice(self.ids[asked], own)
        found = torch.searchsorted(self.ids, wanted).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[found] == wanted, found, asked).tolist()

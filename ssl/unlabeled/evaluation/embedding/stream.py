"""Images through a network, a batch at a time, each handed on and forgotten; by all processes together."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.memory import ArraySource, decode_all
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source
from unlabeled.distributed import rank, world_size
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.rows import Floats
from unlabeled.evaluation.extractor import network_key
from unlabeled.evaluation.features import Features, Transform, extract_each, require_finite_images, unit_rows
from unlabeled.objective import Backbone

Take = Callable[[NDArray[np.bool_], Floats | None], None]  # which of a batch's images decode, [n]; features of these


@dataclass
class Embedder:
    """Makes features of images, the same that the evaluation makes of the same batches.

    Args:
        network: what images go through.
        view: of uint8 images, nothing random.
        described: what decides the view, as plain values.
        device: where.
        precision: of the forward passes.
        kind: of features, see :meth:`unlabeled.objective.Backbone.features`.
        pooling: of tokens [n, D]: ``mean`` or ``max``, D numbers; None: all of them, n · D.
        normalize: whether to make their length 1.
    """

    network: nn.Module
    view: Transform
    described: Any
    device: torch.device
    precision: str = "32-true"
    kind: str = "last"
    pooling: str | None = None
    normalize: bool = False
    shape: list[int] = field(default_factory=list, init=False)  # of an image's features before they are one vector

    def __post_init__(self) -> None:
        if isinstance(self.network, Backbone):
            self.network.check_kinds([self.kind])
        elif self.kind != "last":
            raise UserError(f"features={self.kind}: {type(self.network).__name__} has no such features; allowed: last")
        if self.pooling is not None and self.kind != "tokens":
            raise UserError(f"pooling={self.pooling}: is of features=tokens; features={self.kind} are one vector")

    def settings(self) -> dict[str, Any]:
        """Returns everything but the images that decides the numbers."""
        own = {"features": self.kind, "pooling": self.pooling, "normalize": self.normalize}
        return network_key(self.network, self.described, self.precision, self.device) | own

    def vectors(self, features: Features) -> Tensor:
        """Returns the vectors of one batch, float32 [n, D]."""
        require_finite_images(features, self.precision)
        self.shape = list((features.x if self.kind == "last" else features.others[self.kind]).shape[1:])
        if self.pooling is None:
            x = features.of(self.kind).x
        else:
            tokens = features.others[self.kind]
            x = tokens.mean(dim=1) if self.pooling == "mean" else tokens.amax(dim=1)
        return unit_rows(x) if self.normalize else x


@dataclass
class Images:
    """The splits of a data set, one after another, and how they are cut into batches."""

    data: DataModule
    batch_size: int

    def __post_init__(self) -> None:
        self.sources = self.data.splits.every()

    def settings(self) -> dict[str, Any]:
        """Returns everything that identifies the images; None for a split whose changes cannot be noticed."""
        prints = {name: fingerprint(source) for name, source in self.sources.items()}
        return {"data": prints, "batch_size": self.batch_size}

    def batches(self) -> list[int]:
        """Returns the number of images in each batch, split after split."""
        sizes: list[int] = []
        for source in self.sources.values():
            whole, rest = divmod(len(source), self.batch_size)
            sizes += [self.batch_size] * whole + ([rest] if rest else [])
        return sizes


def stream(embedder: Embedder, images: Images, take: Take, done: int = 0) -> None:
    """Hands the features of every batch to ``take``, in order.

    Args:
        embedder: makes them.
        images: of all splits.
        take: called by the first process alone.
        done: batches, from the first on, that are left out.

    Raises:
        UserError: a feature is not finite, or no image of a split can be decoded.
    """
    for source in images.sources.values():
        count = -(-len(source) // images.batch_size)
        left, done = range(min(done, count), count), max(0, done - count)
        if left:
            _of_split(embedder, images, source, left, take)


def _of_split(embedder: Embedder, images: Images, source: Source, left: range, take: Take) -> None:
    size, mine = images.batch_size, left[rank() :: world_size()]
    positions = [torch.arange(number * size, min(len(source), (number + 1) * size)) for number in mine]
    turns = _Turns(left, len(source), size, take)
    if positions:
        decoded = decode_all(source, 0) if isinstance(source, ArraySource) else source  # which copies nothing
        batches = images.data.batches(decoded, torch.cat(positions), size)

        def found(features: Features) -> None:
            turns.hand_over(features.ids, embedder.vectors(features).numpy())

        kinds = list(dict.fromkeys(["last", embedder.kind]))
        extract_each(embedder.network, batches, embedder.view, embedder.device, embedder.precision, kinds, found)
    turns.end()


class _Turns:
    """Brings batches to the first process, in their order: each process has every so-many-th."""

    def __init__(self, left: range, images: int, size: int, take: Take) -> None:
        self.left, self.images, self.size, self.take = left, images, size, take
        self.turn, self.turns = 0, -(-len(left) // world_size())

    def hand_over(self, ids: Tensor, x: Floats) -> None:
        """Sends a batch of this process; skips batches whose images are all corrupt, which never come."""
        turn = (int(ids[0]) // self.size - self.left.start) // world_size()
        while self.turn < turn:
            self._exchange(None)
        self._exchange((ids.numpy(), x))

    def end(self) -> None:
        """Takes part in the remaining turns, without a batch."""
        while self.turn < self.turns:
            self._exchange(None)

    def _exchange(self, own: tuple[NDArray[np.int64], Floats] | None) -> None:
        every: list[Any] = [own]
        if world_size() > 1:
            every = [None] * world_size()
            torch.distributed.gather_object(own, every if rank() == 0 else None)
        if rank() == 0:
            first = self.left.start + self.turn * world_size()
            for number, found in zip(range(first, self.left.stop), every, strict=False):
                self._take(number, found)
        self.turn += 1

    def _take(self, number: int, found: tuple[NDArray[np.int64], Floats] | None) -> None:
        first = number * self.size
        kept = np.zeros(min(self.images - first, self.size), bool)
        if found is None:
            self.take(kept, None)
        else:
            kept[found[0] - first] = True
            self.take(kept, found[1])

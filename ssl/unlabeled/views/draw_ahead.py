"""Draws the parameters of all views of a step ahead of it, packed into one buffer: one copy to the device."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.views.key import ViewKey
from unlabeled.views.operations import Operation, Parameters

KINDS = 4  # of draws that are made ahead at once: those of a batch, of its labelled images
ALIGNED = 64  # bytes; compiled code reads whole vectors


class DrawnGroup(NamedTuple):
    """Describes some views that are made by the same operations."""

    operations: Sequence[Operation]  # applied to all of them
    views: tuple[int, ...]  # their numbers
    own: Sequence[Sequence[Operation | None]] = ()  # which draw for each view; None: it is left as it is; (): the same

    @property
    def drawn_by(self) -> Sequence[Sequence[Operation | None]]:
        """Returns for each view the operations that draw its parameters, beside those that are applied."""
        return self.own or [self.operations] * len(self.views)


class Place(NamedTuple):
    """Where a parameter lies in the buffer."""

    start: int  # byte
    dtype: torch.dtype
    shape: torch.Size


class Draws(NamedTuple):
    """The parameters of this process's images, for each group and operation.

    Rows are [images · views], all views of an image beside each other.
    """

    packed: Tensor  # uint8 [bytes]
    places: list[list[dict[str, Place]]]
    on_host: list[list[Parameters]]  # of operations that need them there

    def parameters(self, device: torch.device) -> list[list[Parameters]]:
        """Copies the buffer to the device and returns parts of the copy by name; those for the host stay there."""
        there = self.packed.to(device, non_blocking=True)
        return [
            [
                {name: _part(there, place) for name, place in own.items()} | host
                for own, host in zip(*group, strict=True)
            ]
            for group in zip(self.places, self.on_host, strict=True)
        ]


def _part(packed: Tensor, place: Place) -> Tensor:
    stop = place.start + place.shape.numel() * place.dtype.itemsize
    return packed[place.start : stop].view(place.dtype).view(place.shape)


def draw(groups: Sequence[DrawnGroup], key: ViewKey, images: int, pinned: bool) -> Draws:
    """Draws for the whole global batch, keeps the rows of ``images`` of this process from ``key.first`` on, packs them.

    Args:
        groups: of which views.
        key: of the draws.
        images: of this process.
        pinned: whether the buffer is in memory from which a GPU copies without a wait.
    """
    rows, size = slice(key.first, key.first + images), 0
    values: list[list[Parameters]] = [_of_group(group, key, rows) for group in groups]
    places: list[list[dict[str, Place]]] = []
    on_host: list[list[Parameters]] = []
    pieces: list[tuple[Place, Tensor]] = []
    for group, drawn in zip(groups, values, strict=True):
        places.append([])
        on_host.append([])
        for operation, parameters in zip(group.operations, drawn, strict=True):
            stays = getattr(operation, "draws_on_host", False)
            on_host[-1].append(parameters if stays else {})
            places[-1].append({})
            for name, each in ({} if stays else parameters).items():
                place = places[-1][-1][name] = Place(size, each.dtype, each.shape)
                pieces.append((place, each))
                size += -(-each.nbytes // ALIGNED) * ALIGNED
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for place, each in pieces:
        _part(packed, place).copy_(each)
    return Draws(packed, places, on_host)


def _of_group(group: DrawnGroup, key: ViewKey, rows: slice) -> list[Parameters]:
    """Returns for each operation its parameters, rows [images · views]."""
    of_views = []
    for number, own in zip(group.views, group.drawn_by, strict=True):
        generator = key.generator(number)
        of_views.append([None if step is None else step.sample(key.total, generator) for step in own])
    return [_side_by_side(same, rows) for same in zip(*of_views, strict=True)]


def _side_by_side(of_views: Sequence[Parameters | None], rows: slice) -> Parameters:
    """Joins the parameters of one operation for several views; a view without has zeros, so ``applied`` is False."""
    given = next(each for each in of_views if each is not None)
    without = {name: torch.zeros_like(each) for name, each in given.items()} if None in of_views else {}
    views = [without if each is None else each for each in of_views]
    return {name: torch.stack([view[name][rows] for view in views], 1).flatten(0, 1) for name in given}


class DrawAhead:
    """Draws the next step in a thread while this one runs. What is drawn is a function of the key alone.

    So a guess that is wrong, at the end of a run or after a resume, costs a draw and changes nothing. A copy begins
    with nothing drawn.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[object, ...], tuple[int, Future[Draws]]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return DrawAhead, ()

    def take(self, groups: Sequence[DrawnGroup], key: ViewKey, images: int) -> Draws:
        """Returns the draws of ``key`` in pinned memory, and begins with those of the step after it."""
        kind = (key._replace(step=0), images, tuple((id(group.operations), group.views) for group in groups))
        step, begun = self._next.pop(kind, (None, None))
        drawn = begun.result() if begun is not None and step == key.step else draw(groups, key, images, True)
        if len(self._next) >= KINDS:
            self._next.pop(next(iter(self._next)))
        self._next[kind] = key.step + 1, _begin(groups, key._replace(step=key.step + 1), images)
        return drawn


def _begin(groups: Sequence[DrawnGroup], key: ViewKey, images: int) -> "Future[Draws]":
    """Draws in a thread of its own, which ends with it: nothing is left for a fork or an exit to trip over."""
    made: Future[Draws] = Future()

    def run() -> None:
        try:
            made.set_result(draw(groups, key, images, True))
        except BaseException as error:  # whatever it is, it belongs to the step that takes the draws
            made.set_exception(error)

    threading.Thread(target=run, name="draws", daemon=True).start()
    return made

"""Derives seeds from several numbers, so that every random draw of a run has a seed for its own purpose."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def derive_seed(*numbers: int) -> int:
    """Returns a seed in [0, 2⁶³) from all the numbers; close inputs give unrelated seeds (numpy's SeedSequence)."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class Rows(NamedTuple):
    """Which rows of the global batch this process computes; each view of a batch has as many."""

    first: int
    own: int  # how many
    total: int  # over all processes


class _Held:
    """The rows of the present step. They outlive the forward pass: the backward pass may compute a block again."""

    rows: Rows | None = None


def hold_rows(rows: Rows | None) -> None:
    """Sets the rows for :func:`bernoulli_of_rows` until the next call; None: all rows are on this process."""
    _Held.rows = rows


def bernoulli_of_rows(like: Tensor, probability: float) -> Tensor:
    """Returns 1 with a probability and else 0 for each row of ``like`` [n, …]: [n, 1, …], of its dtype and device.

    The draws of a row are the same for any number of processes, if all have one random state: each draws those of all
    rows of the global batch and keeps its own. Views stand one after another, ``rows.own`` rows each.
    """
    rows, single = _Held.rows, [1] * (like.ndim - 1)
    if rows is None or rows.own == rows.total or len(like) % rows.own:
        return like.new_empty(len(like), *single).bernoulli_(probability)
    drawn = like.new_empty(len(like) // rows.own, rows.total, *single).bernoulli_(probability)
    return drawn[:, rows.first : rows.first + rows.own].flatten(0, 1)


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to the device; pinned first, or the host would wait for a GPU."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)

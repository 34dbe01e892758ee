"""A table of embeddings, read a part at a time: what every format is written from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
CHUNK_BYTES = 8 * 2**20  # of features that are held at a time


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, n of them."""

    names: Sequence[str]
    labels: Ints  # [n], -1 where there is none
    splits: Sequence[str]
    x: Floats  # [n, D]


class Rows(Protocol):
    """N rows of D features that can be gone through any number of times."""

    @property
    def classes(self) -> list[str]:
        """Returns class names in the order of labels; [] where none is known."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Returns N and D."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """Yields all rows in order, at most :data:`CHUNK_BYTES` of features at a time."""
        ...


def rows_at_a_time(width: int) -> int:
    """Returns how many rows of ``width`` features are read at a time."""
    return max(1, CHUNK_BYTES // (4 * max(1, width)))


def class_names(rows: Rows) -> list[str]:
    """Returns the class names; [] where they are just the numbers of the classes."""
    return [] if rows.classes == [str(number) for number in range(len(rows.classes))] else rows.classes


def classes_of(labels: Ints, names: list[str]) -> list[str | None]:
    """Returns the class name of each row; None where there is no label."""
    return [names[label] if label >= 0 else None for label in labels.tolist()]

"""Images that cover all others: greedy k-centre (Gonzalez 1985; core sets: Sener and Savarese 2018, 1708.00489)."""

from collections.abc import Sequence

import numpy as np

from unlabeled.evaluation.selection.nearest import Floats, Ints
from unlabeled.evaluation.selection.typicality import check_count


def k_center_rows(x: Floats, count: int, labelled: Sequence[int] = ()) -> tuple[Ints, Floats]:
    """Chooses rows, each the farthest from all that are labelled or chosen: rows [count], and how far [count].

    Algorithm 1 of Sener and Savarese, Euclidean distance; of equally far rows the first. Where nothing is labelled the
    row nearest to the mean is the first (our choice: the same at every call), and its distance is infinite.

    Args:
        x: features [N, D].
        count: 1 to the number of rows without a label.
        labelled: rows that have a label.

    Raises:
        UserError: fewer rows without a label than ``count``.
    """
    check_count(count, len(x), labelled)
    distances = _Distances(x)
    far = np.full(len(x), np.inf)
    for row in labelled:
        far = np.minimum(far, distances.to(row))
    far[list(labelled)] = -1  # equal rows may be chosen, these may not
    chosen, reached = list[int](), list[float]()
    while len(chosen) < count:
        row = int(far.argmax()) if chosen or len(labelled) else distances.most_central()
        chosen.append(row)
        reached.append(float(far[row]))
        far = np.where(far < 0, far, np.minimum(far, distances.to(row)))
        far[row] = -1
    return np.array(chosen, np.int64), np.array(reached)


class _Distances:
    """Of all rows to one, by a product: the differences themselves would take ten times as long."""

    def __init__(self, x: Floats) -> None:
        self._x = x - x.mean(axis=0)  # far from the origin the product would cancel
        self._squares = np.einsum("nd,nd->n", self._x, self._x)

    def to(self, row: int) -> Floats:
        squares = self._squares + self._squares[row] - 2 * (self._x @ self._x[row])
        return np.asarray(np.sqrt(squares.clip(min=0)))

    def most_central(self) -> int:
        return int(self._squares.argmin())

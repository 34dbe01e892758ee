"""Labels that are there and held back: each is told when it is asked for, and not before."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Oracle:
    """Tells labels of a pool one by one and writes down which were asked for.

    Args:
        labels: int64 [N], of all images of the pool.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels
        self.asked: list[int] = []

    def ask(self, rows: Iterable[int]) -> Tensor:
        """Returns the labels of some rows, int64 [n], in their order.

        Raises:
            ValueError: a label is asked for again, which would be paid for twice.
        """
        new = [int(row) for row in rows]
        if len({*self.asked, *new}) < len(self.asked) + len(new):
            raise ValueError("a label is asked for twice")
        self.asked += new
        return self._labels[torch.tensor(new, dtype=torch.long)]

"""Exact top-k of each row, with a fixed order among equal values, at little more than the cost of reading them once."""

import torch
from torch import Tensor
from torch.nn.functional import pad

GROUP = 16  # columns; of 8 to 32 the fastest for 20 and for 200 of 50,000 on a CPU
TIED_ROWS = 64  # rows at a time; each needs masks and counts as long as the row


def top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns values [Q, k] and columns [Q, k] of the largest of each row of [Q, n], in descending order; k ≤ n.

    Among equal values the first columns are taken, in order.
    """
    search = _grouped if similarity.shape[1] >= 4 * GROUP * k else _plain
    values, columns, tied = search(similarity, k)
    # topk may take any of several equal values, and a collapsed network makes all of them equal
    for rows in torch.split(tied.nonzero().flatten(), TIED_ROWS):
        columns[rows] = _first_of_equals(similarity[rows], values[rows, k - 1 : k], k)
        values[rows] = similarity[rows].gather(1, columns[rows])
    disordered = (tied | (values[:, 1:] == values[:, :-1]).any(dim=1)).nonzero().flatten()
    values[disordered], columns[disordered] = sort_with_ties(values[disordered], columns[disordered], k)
    return values, columns


def sort_with_ties(values: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest of ``values`` [Q, n], descending, equal ones by ``columns`` [Q, n], and their columns."""
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns.gather(1, order[:, :k])


def _plain(similarity: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns values [Q, k], descending, columns, and which rows [Q] have more values equal to the smallest of them."""
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]))
    tied = (values[:, k:] == values[:, k - 1 : k]).any(dim=1)
    return values[:, :k], columns[:, :k], tied


def _grouped(similarity: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Does the same by groups of columns: all values above the k-th lie in the k groups with the largest maxima.

    A row also counts as tied if a group that was not searched has that value.
    """
    # group i has the columns i, i + groups, …, so that maxima run over contiguous memory, which is fastest
    left = -similarity.shape[1] % GROUP
    similarity = pad(similarity, (0, left), value=-torch.inf) if left else similarity  # pad copies even by nothing
    members = similarity.view(len(similarity), GROUP, -1)
    largest, group = members.amax(dim=1).topk(k + 1)
    candidates = members.gather(2, group[:, None, :k].expand(-1, GROUP, -1)).flatten(1)
    values, place, tied = _plain(candidates, k)
    columns = (place // k) * members.shape[2] + group.gather(1, place % k)
    return values, columns, tied | (largest[:, k] == values[:, k - 1])


def _first_of_equals(similarity: Tensor, smallest: Tensor, k: int) -> Tensor:
    above, equal = similarity > smallest, similarity == smallest
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(len(similarity), k)

"""The k largest of each row, exactly and in a fixed order among equal ones, for little more than reading them once."""

import torch
from torch import Tensor

GROUP = 16  # columns; of 8 to 32 the fastest for 20 and for 200 of 50,000 on a CPU
TIED_ROWS = 64  # at a time; each needs masks and counts as long as the row


def top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values [Q, k] and columns [Q, k] of the largest of each row of [Q, n], in descending order; k ≤ n.

    Of equal values the first columns are taken, and they stay in that order.
    """
    columns, smallest, tied = _grouped(similarity, k) if similarity.shape[1] >= 4 * GROUP * k else _plain(similarity, k)
    # topk may take any of several equal values, and a collapsed network makes all of them equal
    for rows in tied.nonzero().flatten().split(TIED_ROWS):
        columns[rows] = _first_of_equals(similarity[rows], smallest[rows], k)
    return in_order(similarity.gather(1, columns), columns, k)


def in_order(values: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of ``values`` [Q, n], descending and equal ones by their ``columns`` [Q, n], with those."""
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns.gather(1, order[:, :k])


def _plain(similarity: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns [Q, k] in no order, the smallest value [Q, 1] of them, and which rows have more values like that one."""
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]))
    smallest = values[:, k - 1 : k]
    return columns[:, :k], smallest, (values[:, k:] == smallest).any(dim=1)


def _grouped(similarity: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same by groups of columns: whatever is above the k-th value lies in one of the k groups of largest maximum.

    A row is called tied too where a group that was not looked into has that value.
    """
    groups = similarity.shape[1] // GROUP
    whole = groups * GROUP  # group i is the columns i, i + groups, …: a maximum over rows of memory is the fastest
    largest, group = similarity[:, :whole].unflatten(1, (GROUP, groups)).amax(dim=1).topk(k + 1)
    columns = (group[:, None, :k] + groups * torch.arange(GROUP, device=group.device)[:, None]).flatten(1)
    rest = torch.arange(whole, similarity.shape[1], device=group.device).expand(len(columns), -1)
    columns = torch.cat([columns, rest], dim=1)
    place, smallest, tied = _plain(similarity.gather(1, columns), k)
    return columns.gather(1, place), smallest, tied | (largest[:, k:] == smallest).any(dim=1)


def _first_of_equals(similarity: Tensor, smallest: Tensor, k: int) -> Tensor:
    above, equal = similarity > smallest, similarity == smallest
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(len(similarity), k)

"""A bias of attention that is learned for each offset of two patches; tensors have the names of BEiT's."""

import torch
from torch import Tensor, nn


class RelativePosition(nn.Module):
    """A number for each head and each offset of two patches, and three for the class token, added before the softmax.

    Bao et al. 2021 (BEiT, arXiv:2106.08254), after Raffel et al. 2019 (arXiv:1910.10683); all blocks share it. It
    begins with zeros.

    Args:
        grid: patches along a side.
        heads: of the attention.
    """

    relative_position_index: Tensor  # int64 [1 + L, 1 + L]

    def __init__(self, grid: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, heads))
        self.register_buffer("relative_position_index", offset_index(grid), persistent=False)

    def forward(self) -> Tensor:
        """Returns the bias, [heads, 1 + L, 1 + L]."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


def offset_index(grid: int) -> Tensor:
    """Returns the row of the table for each pair of tokens, int64 [1 + L, 1 + L]; the class token is the first.

    An offset of (y, x) patches has row (y + grid − 1)·(2·grid − 1) + x + grid − 1. The last three rows are from the
    class token to patches, from patches to it, and from it to itself.
    """
    place = torch.arange(grid**2)
    y, x = place // grid, place % grid
    rows = (y[:, None] - y + grid - 1) * (2 * grid - 1) + x[:, None] - x + grid - 1
    index = torch.empty(grid**2 + 1, grid**2 + 1, dtype=torch.long)
    index[1:, 1:] = rows
    last = (2 * grid - 1) ** 2
    index[0], index[:, 0] = last, last + 1
    index[0, 0] = last + 2
    return index

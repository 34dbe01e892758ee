"""Attention of a vision transformer within windows of an image, with decomposed relative positions.

Li et al. 2022 (ViTDet, arXiv:2203.16527), section 3, and MViTv2 (arXiv:2112.01526), eq. 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.transformer import Attention, Block, attend


class WindowAttention(nn.Module):
    """Maps tokens in their places [B, h, w, D] to the same; each attends to those of its window, or to all.

    The map is padded with zeros below and on the right to whole windows; what was padded is attended to, as in
    detectron2. The logit of query i and key j is q·k / √d + q·r_row[row i − row j] + q·r_column[column i − column j],
    with d the width of a head.

    Args:
        attention: of a pretrained block; its tensors become part of the module.
        window: side in tokens; None: the whole map is one.
        grid: height and width of the map that the relative positions of a whole map are learnt for; on others they are
            interpolated linearly.
    """

    def __init__(self, attention: Attention, window: int | None, grid: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj, self.window = attention.heads, attention.qkv, attention.proj, window
        shape = 2 * (window or grid) - 1, self.qkv.in_features // self.heads
        self.rel_pos_h = nn.Parameter(torch.zeros(shape))
        self.rel_pos_w = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.window is None:
            return self._attend(x)
        height, width = x.shape[1:3]
        windows = cut_windows(x, self.window)
        return join_windows(self._attend(windows), self.window, height, width)

    def _attend(self, x: Tensor) -> Tensor:
        """Attends over all of [B, h, w, D]."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, n, d] each
        attended = attend_relative(q, k, v, _between(self.rel_pos_h, height), _between(self.rel_pos_w, width))
        mixed: Tensor = self.proj(attended.transpose(1, 2).reshape(x.shape))
        return mixed


def attend_relative(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns attention with decomposed relative positions, without a matrix of all pairs of tokens in memory.

    A query gets, behind its channels, its products with the positions of all rows and columns, and a key a one at its
    own row and column: their product is the logit, and any kernel for plain attention does the rest. At 1024 pixels, 12
    heads and patches of 16 a matrix of logits is 0.8 GiB an image in float32, and training keeps several.

    Args:
        q, k, v: [B, heads, h · w, d].
        rows: [h, h, d], for the row of a query and that of a key.
        columns: [w, w, d].
    """
    batch, heads, _, width = q.shape
    height, breadth = len(rows), len(columns)
    places = q.view(batch, heads, height, breadth, width)
    by_row = torch.einsum("bnhwd,hkd->bnhwk", places, rows.to(q.dtype)).flatten(2, 3)
    by_column = torch.einsum("bnhwd,wkd->bnhwk", places, columns.to(q.dtype)).flatten(2, 3)
    own = torch.cat([_own(height, q).repeat_interleave(breadth, 0), _own(breadth, q).repeat(height, 1)], 1)
    spare = -(width + height + breadth) % 8  # kernels for 16 bits want multiples of eight
    wide = width + height + breadth + spare
    queries = F.pad(torch.cat([q * width**-0.5, by_row, by_column], 3), (0, spare))
    keys = F.pad(torch.cat([k, own.expand(batch, heads, -1, -1)], 3), (0, spare))
    values = F.pad(v, (0, wide - width))  # flash attention wants equal widths
    return attend(queries * wide**0.5, keys, values)[..., :width]  # attend() divides by the root of the width


def cut_windows(x: Tensor, side: int) -> Tensor:
    """Cuts maps [B, h, w, D] into windows [B · n, side, side, D], row by row, with zeros below and on the right."""
    batch, height, width, channels = x.shape
    padded = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = (length // side for length in padded.shape[1:3])
    parts = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
    return parts.reshape(-1, side, side, channels)


def join_windows(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """Undoes :func:`cut_windows`: [B · n, side, side, D] → [B, height, width, D]."""
    rows, columns = -(-height // side), -(-width // side)
    parts = windows.view(-1, rows, columns, side, side, windows.shape[-1]).transpose(2, 3)
    return parts.reshape(-1, rows * side, columns * side, windows.shape[-1])[:, :height, :width]


def _between(table: Tensor, length: int) -> Tensor:
    """Returns [length, length, d], row i and column j: the position of i − j in a table [2 n − 1, d]."""
    if len(table) != 2 * length - 1:
        table = F.interpolate(table.T[None], 2 * length - 1, mode="linear")[0].T
    places = torch.arange(length, device=table.device)
    return table[places[:, None] - places + length - 1]


def _own(length: int, like: Tensor) -> Tensor:
    return torch.eye(length, dtype=like.dtype, device=like.device)


class WindowBlock(nn.Module):
    """A pretrained block whose attention is a :class:`WindowAttention`: [B, h, w, D] → the same.

    Args:
        block: its tensors become part of the module, with their names.
        attention: made of the block's own.
        drop_path: takes the place of the block's own.
    """

    def __init__(self, block: Block, attention: WindowAttention, drop_path: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, attention, block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        added: Tensor = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return added

"""Reads images of parquet files larger than memory, one row group at a time, in an order that reads each group once."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.phrases import one_line
from unlabeled.data.source import CorruptImage

WINDOW_BYTES = 2**28  # bytes of encoded images that a process keeps and that an epoch's order mixes at a time


class Blocks:
    """Runs of rows that lie together, G of them: an epoch takes whole windows of some blocks, in random order.

    Args:
        starts: int64 [G + 1], the first row of each block, then the number of rows.
        window: blocks whose rows are mixed with one another.
    """

    def __init__(self, starts: Tensor, window: int) -> None:
        self.starts, self.window = starts, window

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Returns all rows, int64 [N]: blocks in random order, and rows in random order within each ``window``."""
        order = torch.randperm(len(self.starts) - 1, generator=generator)
        sizes = self.starts.diff()[order]
        ends = sizes.cumsum(0)
        rows = torch.arange(int(ends[-1])) + (self.starts[order] - (ends - sizes)).repeat_interleave(sizes)
        window = (torch.arange(len(order)) // self.window).repeat_interleave(sizes)
        return rows[(window + torch.rand(len(rows), generator=generator, dtype=torch.float64)).argsort()]


class RowGroups:
    """Reads row i of some parquet files as bytes; each process keeps the row groups that it read last.

    Args:
        names, metadata: of the files, ``pyarrow.parquet.FileMetaData``.
        columns: of the images in each file; of a struct the field, ``image.bytes``.
        extract: makes an array of bytes of that column.
    """

    def __init__(self, names: list[str], metadata: list[Any], columns: list[str], extract: Any) -> None:
        self._given = names, metadata, columns, extract
        groups = [(file, number) for file, each in enumerate(metadata) for number in range(each.num_row_groups)]
        rows = [metadata[file].row_group(number).num_rows for file, number in groups]
        self._groups, self._starts = groups, np.cumsum([0, *rows])
        largest = max((_size(metadata[file], number, columns[file]) for file, number in groups), default=1)
        self.blocks = Blocks(torch.from_numpy(self._starts), max(1, WINDOW_BYTES // max(1, largest)))
        self._group = lru_cache(self.blocks.window)(self._read)

    def __reduce__(self) -> Any:
        return RowGroups, self._given  # pickled without the row groups that this process keeps

    def __getitem__(self, index: int) -> bytes | None:
        """Returns one row. Raises CorruptImage where the row group cannot be read; the message is the reason alone."""
        group = int(np.searchsorted(self._starts, index, "right")) - 1
        value: bytes | None = self._group(group)[index - int(self._starts[group])].as_py()
        return value

    def _read(self, group: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names, metadata, columns, extract = self._given
        file, number = self._groups[group]
        try:  # opened again: forked workers would share one file position
            with pq.ParquetFile(names[file], metadata=metadata[file]) as opened:
                table = opened.read_row_group(number, columns=[columns[file]], use_threads=False)
        except FileNotFoundError as error:
            raise CorruptImage("the file is gone") from error
        except (pa.ArrowException, OSError) as error:
            raise CorruptImage(f"row group {number} cannot be read ({one_line(error)})") from error
        return extract(table.column(0)).combine_chunks()


def encoded_bytes(metadata: list[Any], column: str) -> int:
    """Returns the uncompressed bytes of a column in all files."""
    return sum(_size(each, number, column) for each in metadata for number in range(each.num_row_groups))


def _size(metadata: Any, group: int, column: str) -> int:
    """Returns the uncompressed bytes of a column, or of its fields, in one row group."""
    parts = (metadata.row_group(group).column(number) for number in range(metadata.num_columns))
    return sum(part.total_uncompressed_size for part in parts if f"{part.path_in_schema}.".startswith(f"{column}."))

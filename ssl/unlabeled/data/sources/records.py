"""Reads encoded images that are byte ranges of larger files: members of tar shards, values of arrow files, and such."""

import hashlib
import os

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.escaping import escaped
from unlabeled.core.phrases import one_line
from unlabeled.core.reading import refuse_fault_of_machine
from unlabeled.data.decode import decode_bytes
from unlabeled.data.decoding import RGB, Decoding
from unlabeled.data.lists.index import Index
from unlabeled.data.source import CorruptImage
from unlabeled.data.sources.files import read_range
from unlabeled.errors import UserError


class RecordSource:
    """A source of the images of an index, in its order; each is read when asked for, and nothing is kept in memory.

    Args:
        index: int64 columns ``file`` (number in ``note["files"]``, whose elements begin with a path), ``offset`` and
            ``size`` (bytes; below 0: there is no image); bytes ``name``, or none: rows are then numbered within a file.
        labels: int64 [N], -1 where there is none.
        classes: their names.
        image_size, square: see :func:`unlabeled.data.decode.to_rgb`.
    """

    decoding = RGB

    def __init__(self, index: Index, labels: Tensor, classes: list[str], image_size: int, square: bool) -> None:
        self._index, self.labels, self.classes = index, labels, classes
        self.image_size, self.square = image_size, square
        self._columns()

    def _columns(self) -> None:
        index = self._index
        self._file, self._offset, self._size = (index.numbers(name) for name in ("file", "offset", "size"))
        self._paths = [file[0] for file in index.note["files"]]
        self._first = np.searchsorted(self._file, np.arange(len(self._paths)))  # row of each file

    def __getstate__(self) -> tuple[Index, Tensor, list[str], int, bool, Decoding]:
        own = self._index, self.labels, self.classes, self.image_size, self.square, self.decoding
        return own  # the columns are in the index

    def __setstate__(self, state: tuple[Index, Tensor, list[str], int, bool, Decoding]) -> None:
        self._index, self.labels, self.classes, self.image_size, self.square, self.decoding = state
        self._columns()

    def __len__(self) -> int:
        return len(self._index)

    def decode(self, index: int) -> Tensor:
        return decode_bytes(self.encoded(index), self.name(index), self.image_size, self.square, self.decoding)

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of one image. Raises CorruptImage, with the reason."""
        size = int(self._size[index])
        if size < 0:
            raise CorruptImage(f"{self.name(index)}: the row holds no bytes")
        try:
            data = read_range(self._path(index), int(self._offset[index]), size)
        except FileNotFoundError as error:
            raise CorruptImage(f"{self.name(index)}: {self._path(index)} is gone") from error
        except Exception as error:  # every store raises its own errors
            refuse_fault_of_machine(self.name(index), error)
            raise CorruptImage(f"{self.name(index)}: {type(error).__name__}: {one_line(error)}") from error
        if len(data) > size:
            raise UserError(
                f"{self._path(index)}: its server sends whole files where a part is asked for: copy them to a disk, or"
                " serve them from a store that knows byte ranges, as S3 does"
            )
        if len(data) < size:
            raise CorruptImage(f"{self.name(index)}: {self._path(index)} has been cut short since it was listed")
        return data

    def files(self) -> list[str]:
        return [str(path) for path in self._paths]

    def within(self) -> str:
        digest = hashlib.sha256()
        for column in (self._file, self._offset, self._size):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def name(self, index: int) -> str:
        row = index - int(self._first[self._file[index]])
        if not self._index.has("name"):
            return escaped(f"{self._path(index)} row {row}")
        return escaped(f"{self._path(index)}/{os.fsdecode(self._index.text('name', index))}")

    def _path(self, index: int) -> str:
        return str(self._paths[self._file[index]])


def labels_of(index: Index) -> Tensor:
    """Returns the column ``label`` as int64 [N], copied because torch warns of read-only memory."""
    return torch.from_numpy(index.numbers("label").copy())

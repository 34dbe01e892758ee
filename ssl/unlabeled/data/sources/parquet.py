"""Reads encoded images from parquet files, as Hugging Face data sets store them."""

from typing import Any

import numpy as np
from torch import Tensor

from unlabeled.core.phrases import one_line
from unlabeled.core.ranges import Channels, Classes, Count, Decoder, FilePath, Pixels
from unlabeled.core.reading import require_regular
from unlabeled.data.decode import check_image_size, decode_bytes, describe_size
from unlabeled.data.decoding import MOST_PIXELS, RGB, Bits, Decoding
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.data.sources.columns import (
    ColumnData,
    class_indices,
    count_classes,
    image_bytes,
    join_files,
    require_columns,
    require_labels_below,
    require_same_split,
    row_name,
)
from unlabeled.data.sources.files import match_files
from unlabeled.data.sources.rowgroups import Blocks, RowGroups, encoded_bytes
from unlabeled.errors import UserError

MEMORY = 2**31  # most bytes of a split's encoded images that stay in memory


class ParquetSource:
    """A source of the rows of one or more parquet files, in order.

    The encoded bytes stay in memory, as arrow arrays that workers share, or are read by row groups; then an epoch's
    order goes by these ``blocks``.
    """

    decoding = RGB

    def __init__(self, table: "ColumnData", column: str, classes: list[str], image_size: int, square: bool) -> None:
        self._table, self._column = table, column
        self.labels = table.labels
        self.classes = classes
        self.image_size, self.square = image_size, square
        self.blocks: Blocks | None = table.encoded.blocks if isinstance(table.encoded, RowGroups) else None

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        return decode_bytes(self.encoded(index), self.name(index), self.image_size, self.square, self.decoding)

    def encoded(self, index: int) -> bytes:
        """Returns the image as its row holds it; raises CorruptImage."""
        try:
            found = self._table.encoded[index]
        except CorruptImage as error:
            raise CorruptImage(f"{self.name(index)}: {error}") from error
        data: bytes | None = found if isinstance(self._table.encoded, RowGroups) else found.as_py()
        if data is None:
            raise CorruptImage(f"{self.name(index)}: the row holds no bytes")
        return data

    def files(self) -> list[str]:
        return self._table.files

    def within(self) -> str:
        return self._column

    def name(self, index: int) -> str:
        return row_name(self._table, index)


def parquet(
    path: FilePath,
    train: FilePath = "train.parquet",
    test: FilePath | None = "test.parquet",
    image_size: Pixels = 32,
    square: bool = True,
    image_column: str = "image",
    label_column: str | None = "label",
    num_classes: Classes | None = None,
    channels: Channels = 3,
    bits: Bits = 8,
    max_pixels: Count = MOST_PIXELS,
    decode: Decoder = "auto",
) -> Splits:
    """Reads images from the parquet files ``train`` and ``test``: names or glob patterns in the folder ``path``.

    ``path`` may also be the common beginning of the files' paths. The image column is binary or a struct with a binary
    field ``bytes``. Labels are integers from 0, null where there is none; ``label_column=None`` reads none. Class names
    are those of Hugging Face's metadata, else "0", "1", … up to the greatest label of train; ``num_classes`` cuts or
    continues either list. Rows count from 0. Images are ``square`` or whole, see :func:`unlabeled.data.decode.to_rgb`;
    ``image_size`` is in pixels.

    Up to :data:`MEMORY` all encoded bytes are read now. Larger files are read by row groups, and an epoch's order mixes
    as many of them at a time as fit into :data:`unlabeled.data.sources.rowgroups.WINDOW_BYTES`: each worker reads each
    once.

    Raises UserError for missing files or columns, columns of another type, and labels outside the classes.
    """
    check_image_size(image_size)
    decoding = Decoding(channels, bits, max_pixels, decode)
    if test is not None and label_column is None:
        raise UserError("data.label_column=null leaves nothing to test with: give data.test=null too")
    train_table = _read(path, train, "data.train", image_column, label_column)
    classes = [] if label_column is None else count_classes(train_table, num_classes)
    source, kept = (
        ParquetSource(train_table, image_column, classes, image_size, square),
        describe_size(image_size, square),
    )
    if test is None:
        counts = f"{len(source):,} images from {path}, {len(classes)} classes, no test split"
        return decoding.of(Splits(source, None, f"{counts}, {kept}"))
    test_table = _read(path, test, "data.test", image_column, label_column)
    require_same_split(train_table, test_table)
    require_labels_below(len(classes), test_table, "the classes of train")
    held_out = ParquetSource(test_table, image_column, classes, image_size, square)
    counts = f"{len(source):,} train and {len(held_out):,} test images"
    splits = Splits(source, held_out, f"{counts} from {path}, {len(classes)} classes, {kept}")
    return decoding.of(splits.judged())


def _read(path: str, pattern: str, key: str, image_column: str, label_column: str | None) -> ColumnData:
    """Reads one split's files; the columns of all are checked before the first image is read."""
    names = match_files(path, pattern, key, "parquet")
    headers = [_header(name, key) for name in names]
    for name, (schema, _) in zip(names, headers, strict=True):
        require_columns(name, schema, image_column, label_column)
    labels = [
        np.full(metadata.num_rows, -1) if label_column is None else class_indices(name, _column(name, label_column))
        for name, (_, metadata) in zip(names, headers, strict=True)
    ]
    encoded = _encoded(names, headers, image_column)
    return join_files(names, labels, [schema for schema, _ in headers], label_column, encoded, f"{key}={pattern}")


def _encoded(names: list[str], headers: list[tuple[Any, Any]], column: str) -> Any:
    """Returns the encoded images of all files: in memory, or to be read by row groups."""
    import pyarrow as pa
    import pyarrow.types as kinds

    metadata = [each for _, each in headers]
    if encoded_bytes(metadata, column) <= MEMORY:
        parts = (image_bytes(_column(name, column)) for name in names)
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.large_binary())
    nested = [kinds.is_struct(schema.field(column).type) for schema, _ in headers]
    return RowGroups(names, metadata, [f"{column}.bytes" if each else column for each in nested], image_bytes)


def _header(name: str, key: str) -> tuple[Any, Any]:
    """Returns schema and metadata of a file, which is closed again: there may be more files than may be open."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        require_regular(name)
        with pq.ParquetFile(name) as file:
            return file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name} is not a parquet file, or cut short ({one_line(error)}): change {key}") from error


def _column(name: str, column: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(name) as file:
            return file.read(columns=[column]).column(column)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: column {column} cannot be read ({one_line(error)}): fetch data.path again") from error

"""Encoded images in parquet files, as Hugging Face data sets store them."""

import json
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.decode import check_image_size, decode_bytes, in_words
from unlabeled.data.files import line, matching, some
from unlabeled.data.rowgroups import Blocks, RowGroups, encoded_bytes
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.errors import UserError

MAX_CLASSES = (
    100_000  # a greater label, where nothing says how many there are, is taken for an id (ImageNet-21k: 21,841)
)
MEMORY = 2**31  # bytes of encoded images of one split that are kept in memory
_BINARY = ("binary", "large_binary")  # how arrow's names of the types that hold encoded images begin


class ParquetSource:
    """The rows of one or more files in order. The encoded bytes stay in memory, as arrow arrays that workers share, or
    are read by row groups; then an epoch's order goes by these ``blocks``."""

    def __init__(self, table: "_Table", classes: list[str], image_size: int, square: bool) -> None:
        self._table = table
        self.labels = table.labels
        self.classes = classes
        self.image_size, self.square = image_size, square
        self.blocks: Blocks | None = table.encoded.blocks if isinstance(table.encoded, RowGroups) else None

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        try:
            data = self._table.encoded[index]
        except CorruptImage as error:
            raise CorruptImage(f"{self.name(index)}: {error}") from error
        data = data if isinstance(self._table.encoded, RowGroups) else data.as_py()
        if data is None:
            raise CorruptImage(f"{self.name(index)}: the row holds no bytes")
        return decode_bytes(data, self.name(index), self.image_size, self.square)

    def name(self, index: int) -> str:
        return _row_name(self._table, index)


@dataclass
class _Table:
    """What one split's files hold together."""

    files: list[str]
    starts: list[int]  # index of the first row of each
    encoded: Any  # pyarrow.ChunkedArray [N] of bytes or null, or RowGroups
    labels: Tensor  # int64 [N], -1 where null
    class_names: list[str] | None  # from Hugging Face's metadata


def parquet(
    path: str,
    train: str = "train.parquet",
    test: str | None = "test.parquet",
    image_size: int = 32,
    square: bool = True,
    image_column: str = "image",
    label_column: str | None = "label",
    num_classes: int | None = None,
) -> Splits:
    """Images in the parquet files ``train`` and ``test``: names or glob patterns in the folder ``path``.

    ``path`` may also be the beginning that the files' paths share. The image column is binary or a struct with a binary
    field ``bytes``. Labels are integers from 0, null where there is none; ``label_column=None`` reads none. Class names
    are those of Hugging Face's metadata, else "0", "1", … up to the greatest label of train; ``num_classes`` cuts or
    continues either list. Rows count from 0. Images are ``square`` or whole, see :func:`unlabeled.data.decode.rgb`;
    ``image_size`` is in pixels.

    Up to :data:`MEMORY` all encoded bytes are read now. Larger files are read by row groups, and an epoch's order mixes
    as many of them at a time as :data:`unlabeled.data.rowgroups.WINDOW_BYTES` hold: each worker reads each once.

    Raises UserError for missing files or columns, columns of another type, and labels outside the classes.
    """
    check_image_size(image_size)
    if test is not None and label_column is None:
        raise UserError("data.label_column=null leaves nothing to test with: give data.test=null too")
    train_table = _read(path, train, "data.train", image_column, label_column)
    classes = [] if label_column is None else _classes(train_table, num_classes)
    source, kept = ParquetSource(train_table, classes, image_size, square), in_words(image_size, square)
    if test is None:
        counts = f"{len(source):,} images from {path}, {len(classes)} classes, no test split"
        return Splits(source, None, f"{counts}, {kept}")
    test_table = _read(path, test, "data.test", image_column, label_column)
    _require_same_split(train_table, test_table)
    _require_labels_below(len(classes), test_table, "the classes of train")
    held_out = ParquetSource(test_table, classes, image_size, square)
    counts = f"{len(source):,} train and {len(held_out):,} test images"
    return Splits(source, held_out, f"{counts} from {path}, {len(classes)} classes, {kept}")


def _read(path: str, pattern: str, key: str, image_column: str, label_column: str | None) -> _Table:
    """One split's files; the columns of all are checked before the first image is read."""
    names = matching(path, pattern, key, "parquet")
    files = [_open(name, key) for name in names]
    for name, file in zip(names, files, strict=True):
        _require_columns(name, file.schema_arrow, image_column, label_column)
    labels = [_labels(name, file, label_column) for name, file in zip(names, files, strict=True)]
    *starts, rows = np.cumsum([0] + [len(part) for part in labels]).tolist()
    if rows == 0:
        raise UserError(f"{key}={pattern}: {some(names)} in data.path={path} holds no rows; give files with images")
    class_names = [found for file in files if (found := _class_names(file.schema_arrow, label_column)) is not None]
    if any(other != class_names[0] for other in class_names):
        raise UserError(f"{key}={pattern}: class names differ between {some(names)}; give files of one data set")
    merged = torch.from_numpy(np.concatenate(labels))
    encoded = _encoded(names, files, image_column)
    return _Table(names, starts, encoded, merged, class_names[0] if class_names else None)


def _encoded(names: list[str], files: list[Any], column: str) -> Any:
    """The encoded images of all files: in memory, or to be read by row groups."""
    import pyarrow as pa
    import pyarrow.types as kinds

    metadata = [file.metadata for file in files]
    if encoded_bytes(metadata, column) <= MEMORY:
        parts = (_bytes(_column(name, file, column)) for name, file in zip(names, files, strict=True))
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks])
    nested = [kinds.is_struct(file.schema_arrow.field(column).type) for file in files]
    return RowGroups(names, metadata, [f"{column}.bytes" if each else column for each in nested], _bytes)


def _open(name: str, key: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(name)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name} is not a parquet file, or cut short ({line(error)}): change {key}") from error


def _column(name: str, file: Any, column: str) -> Any:
    import pyarrow as pa

    try:
        return file.read(columns=[column]).column(column)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: column {column} cannot be read ({line(error)}): fetch data.path again") from error


def _require_columns(name: str, schema: Any, image_column: str, label_column: str | None) -> None:
    import pyarrow.types as kinds

    wanted = [(image_column, "data.image_column=...", "encoded images (binary, or a struct with binary bytes)")]
    if label_column is not None:
        wanted.append((label_column, "data.label_column=... (null: no labels)", "integer labels"))
    for column, key, content in wanted:
        kind = schema.field(column).type if column in schema.names else None
        if kind is not None and column == image_column and kinds.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        allowed = _BINARY if column == image_column else ("int", "uint", "null")
        if not str(kind).startswith(allowed):
            problem = "is missing" if kind is None else f"is {kind}"
            present = some([f"{field.name}: {field.type}" for field in schema])
            raise UserError(f"{name}: column {column} {problem}, {content} are needed; give {key}, one of {present}")


def _bytes(column: Any) -> Any:
    """The encoded images of a column, as a ChunkedArray of one type for all files."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    return (pc.struct_field(column, "bytes") if kinds.is_struct(column.type) else column).cast("large_binary")


def _labels(name: str, file: Any, label_column: str | None) -> np.ndarray:
    """int64 [rows], -1 where null; raises UserError at the first label that is no class number."""
    if label_column is None:
        return np.full(file.metadata.num_rows, -1)
    column = _column(name, file, label_column)
    missing = column.is_null().to_numpy()
    labels = np.asarray(column.cast("int64", safe=False).fill_null(0).to_numpy())
    wrong = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if len(wrong):
        raise UserError(
            f"{name} row {wrong[0]}: label {column[int(wrong[0])]} is outside 0..{MAX_CLASSES - 1}, whatever"
            " data.num_classes: classes count from 0 and unlabelled rows are null; mend it, or change data.label_column"
        )
    return np.where(missing, -1, labels)


def _class_names(schema: Any, label_column: str | None) -> list[str] | None:
    """Names of a ClassLabel feature in the metadata that Hugging Face's ``datasets`` writes."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    feature = json.loads(metadata).get("info", {}).get("features", {}).get(label_column, {})
    return feature.get("names") if feature.get("_type") == "ClassLabel" else None


def _classes(train: _Table, num_classes: int | None) -> list[str]:
    if num_classes is not None and not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"data.num_classes={num_classes} is not a number of classes: give 1..{MAX_CLASSES}, or null")
    names = train.class_names or []
    count = num_classes or len(names) or int(train.labels.max()) + 1
    reason = f"data.num_classes={num_classes}" if num_classes else f"the metadata's {len(names)} class names"
    _require_labels_below(count, train, reason)
    return names[:count] + [str(label) for label in range(len(names), count)]


def _require_labels_below(count: int, table: _Table, reason: str) -> None:
    wrong = np.flatnonzero(table.labels.numpy() >= count)
    if len(wrong):
        label = int(table.labels[wrong[0]])
        raise UserError(
            f"{_row_name(table, wrong[0])}: label {label} is outside 0..{count - 1} ({reason});"
            f" mend the file, or give data.num_classes={label + 1} or more"
        )


def _require_same_split(train: _Table, test: _Table) -> None:
    """The two splits of one data set: no file in both, and labels that mean the same."""
    if shared := set(train.files) & set(test.files):
        raise UserError(f"{min(shared)} is matched by data.train and by data.test: tests need images not trained on")
    if train.class_names and test.class_names and train.class_names != test.class_names:
        first, second = some(train.class_names), some(test.class_names)
        raise UserError(
            f"class names differ: data.train has {first}; data.test has {second}; give files of one data set"
        )


def _row_name(table: _Table, index: int) -> str:
    part = bisect_right(table.starts, index) - 1
    return f"{table.files[part]} row {index - table.starts[part]}"

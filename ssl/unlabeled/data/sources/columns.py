"""Columns of images and of labels in Hugging Face data sets, in parquet and in arrow files."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.escaping import escaped
from unlabeled.core.parsing import parse_json
from unlabeled.core.phrases import shorten_list
from unlabeled.errors import UserError

MAX_CLASSES = (
    100_000  # a greater label is taken for an id if the number of classes is unknown (ImageNet-21k has 21,841)
)
_BINARY = ("binary", "large_binary")  # beginnings of arrow's type names for encoded images


@dataclass
class ColumnData:
    """Images and labels of all files of one split."""

    files: list[str]
    starts: list[int]  # index of the first row of each
    encoded: Any  # pyarrow.ChunkedArray [N] of bytes or null, or RowGroups
    labels: Tensor  # int64 [N], -1 where null
    class_names: list[str] | None  # from Hugging Face's metadata


def require_columns(name: str, schema: Any, image_column: str, label_column: str | None) -> None:
    """Raises UserError, listing the columns, unless a file has both columns and they are of the right types."""
    import pyarrow.types as kinds

    wanted = [(image_column, "data.image_column=...", "encoded images (binary, or a struct with binary bytes)")]
    if label_column is not None:
        wanted.append((label_column, "data.label_column=... (null: no labels)", "integer labels"))
    for column, key, content in wanted:
        if schema.names.count(column) > 1:
            raise UserError(f"{name}: has {schema.names.count(column)} columns called {column}; give them two names")
        kind = schema.field(column).type if column in schema.names else None
        if kind is not None and column == image_column and kinds.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        allowed = _BINARY if column == image_column else ("int", "uint", "null")
        if not str(kind).startswith(allowed):
            problem = "is missing" if kind is None else f"is {kind}"
            present = shorten_list([f"{field.name}: {field.type}" for field in schema])
            raise UserError(f"{name}: column {column} {problem}, {content} are needed; give {key}, one of {present}")


def image_bytes(column: Any) -> Any:
    """Converts a column of encoded images to a ChunkedArray of one type for all files."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    return (pc.struct_field(column, "bytes") if kinds.is_struct(column.type) else column).cast("large_binary")


def class_indices(name: str, column: Any) -> np.ndarray:
    """Returns the labels of one file, int64 [rows], -1 where null; UserError at a label that is no class number."""
    missing = column.is_null().to_numpy()
    labels = np.asarray(column.cast("int64", safe=False).fill_null(0).to_numpy())
    wrong = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if len(wrong):
        raise UserError(
            f"{name} row {wrong[0]}: label {column[int(wrong[0])]} is outside 0..{MAX_CLASSES - 1}, whatever"
            " data.num_classes: classes count from 0 and unlabelled rows are null; mend it, or change data.label_column"
        )
    return np.where(missing, -1, labels)


def join_files(
    names: list[str], labels: list[np.ndarray], schemas: list[Any], label_column: str | None, encoded: Any, given: str
) -> ColumnData:
    """Joins the files ``names`` to one split; ``given``: its key and value. Raises UserError: no rows, names differ."""
    *starts, rows = np.cumsum([0] + [len(part) for part in labels]).tolist()
    if rows == 0:
        raise UserError(f"{given}: {shorten_list(names)} holds no rows; give files with images")
    class_names = [found for schema in schemas if (found := _class_names(schema, label_column)) is not None]
    if any(other != class_names[0] for other in class_names):
        raise UserError(f"{given}: class names differ between {shorten_list(names)}; give files of one data set")
    merged = torch.from_numpy(np.concatenate(labels))
    return ColumnData(names, starts, encoded, merged, class_names[0] if class_names else None)


def count_classes(train: ColumnData, num_classes: int | None) -> list[str]:
    if num_classes is not None and not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"data.num_classes={num_classes} is not a number of classes: give 1..{MAX_CLASSES}, or null")
    names = train.class_names or []
    count = num_classes or len(names) or int(train.labels.max()) + 1
    reason = f"data.num_classes={num_classes}" if num_classes else f"the metadata's {len(names)} class names"
    require_labels_below(count, train, reason)
    return names[:count] + [str(label) for label in range(len(names), count)]


def require_labels_below(count: int, table: ColumnData, reason: str) -> None:
    wrong = np.flatnonzero(table.labels.numpy() >= count)
    if len(wrong):
        label = int(table.labels[wrong[0]])
        raise UserError(
            f"{row_name(table, wrong[0])}: label {label} is outside 0..{count - 1} ({reason});"
            f" mend the file, or give data.num_classes={label + 1} or more"
        )


def require_same_split(train: ColumnData, test: ColumnData) -> None:
    """Raises UserError unless two splits fit together: no file in both, and labels with the same meaning."""
    if shared := set(train.files) & set(test.files):
        raise UserError(f"{min(shared)} is matched by data.train and by data.test: tests need images not trained on")
    if train.class_names and test.class_names and train.class_names != test.class_names:
        first, second = shorten_list(train.class_names), shorten_list(test.class_names)
        raise UserError(
            f"class names differ: data.train has {first}; data.test has {second}; give files of one data set"
        )


def row_name(table: ColumnData, index: int) -> str:
    part = bisect_right(table.starts, index) - 1
    return escaped(f"{table.files[part]} row {index - table.starts[part]}")


def _class_names(schema: Any, label_column: str | None) -> list[str] | None:
    """Returns the ClassLabel names in the metadata that Hugging Face's ``datasets`` writes."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        feature = parse_json(metadata)["info"]["features"][label_column]
        return [escaped(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError):  # no ClassLabel feature, or metadata of another kind
        return None

"""Reads Hugging Face data sets on disk, as ``save_to_disk`` writes them; the package ``datasets`` is not needed."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.core.parsing import parse_json
from unlabeled.core.phrases import one_line, shorten_list
from unlabeled.core.ranges import Channels, Classes, Count, Decoder, FilePath, Pixels
from unlabeled.core.reading import name_inside, read_text, require_regular
from unlabeled.data.decode import check_image_size, describe_size
from unlabeled.data.decoding import MOST_PIXELS, Bits, Decoding
from unlabeled.data.lists.index import make_index
from unlabeled.data.source import Splits
from unlabeled.data.sources.columns import (
    ColumnData,
    class_indices,
    count_classes,
    image_bytes,
    join_files,
    require_columns,
    require_labels_below,
    require_same_split,
)
from unlabeled.data.sources.records import RecordSource
from unlabeled.errors import UserError


def huggingface(
    path: FilePath,
    train: str = "train",
    test: str | None = None,
    image_size: Pixels = 256,
    square: bool = False,
    image_column: str = "image",
    label_column: str | None = "label",
    num_classes: Classes | None = None,
    channels: Channels = 3,
    bits: Bits = 8,
    max_pixels: Count = MOST_PIXELS,
    decode: Decoder = "auto",
) -> Splits:
    """Reads images from the arrow files of ``path``, a folder that ``save_to_disk`` of a Dataset or DatasetDict made.

    ``train`` and ``test`` are splits in it, "." is ``path`` itself. Columns, labels and classes are as in
    :func:`unlabeled.data.sources.parquet.parquet`; images whole or ``square``, see
    :func:`unlabeled.data.decode.to_rgb`. Labels and positions of the images are read now, the images when they are
    decoded.

    Raises UserError for a folder of another kind, missing files or columns, and labels outside the classes.
    """
    check_image_size(image_size)
    decoding = Decoding(channels, bits, max_pixels, decode)
    if test is not None and label_column is None:
        raise UserError("data.label_column=null leaves nothing to test with: give data.test=null too")
    table = _read(path, train, "data.train", image_column, label_column)
    classes = [] if label_column is None else count_classes(table, num_classes)
    source = RecordSource(table.encoded, table.labels, classes, image_size, square)
    kind = f"{len(classes)} classes, {describe_size(image_size, square)}"
    if test is None:
        return decoding.of(Splits(source, None, f"{len(source):,} images from {path}, no test split, {kind}"))
    other = _read(path, test, "data.test", image_column, label_column)
    require_same_split(table, other)
    require_labels_below(len(classes), other, "the classes of train")
    held_out = RecordSource(other.encoded, other.labels, classes, image_size, square)
    counts = f"{len(source):,} train and {len(held_out):,} test images from {path}"
    return decoding.of(Splits(source, held_out, f"{counts}, {kind}").judged())


def _read(path: str, split: str, key: str, image_column: str, label_column: str | None) -> ColumnData:
    """Reads one split's files; the columns of all are checked before a label is read."""
    names = _files(Path(path).expanduser(), split, f"{key}={split}")
    tables = [_open(name) for name in names]
    for name, (_, table) in zip(names, tables, strict=True):
        require_columns(name, table.schema, image_column, label_column)
    ranges, labels = [], []
    for name, (start, table) in zip(names, tables, strict=True):
        ranges.append(_ranges(name, start, image_bytes(table.column(image_column))))
        labels.append(
            np.full(len(table), -1) if label_column is None else class_indices(name, table.column(label_column))
        )
    file = np.repeat(np.arange(len(names)), [len(part) for part in labels])
    offset, size = np.concatenate(ranges, 1) if ranges else np.zeros((2, 0), np.int64)
    listed = make_index({"file": file, "offset": offset, "size": size}, {"files": [[name] for name in names]})
    return join_files(names, labels, [table.schema for _, table in tables], label_column, listed, f"{key}={split}")


def _files(base: Path, split: str, given: str) -> list[str]:
    folder, state = base / split, base / split / "state.json"
    if not os.path.isfile(state):
        there = sorted(found.parent.name for found in base.glob("*/state.json")) if os.path.isdir(base) else []
        there += ["."] if os.path.isfile(base / "state.json") else []
        raise UserError(
            f"{given}: {folder.absolute()} is no data set that save_to_disk wrote (no state.json); data.path={base}"
            f" has these splits: {shorten_list(there)}"
        )
    text = read_text(state, str(state))
    try:
        content = parse_json(text)
        selected = content.get("_indices_files") or content.get("_indices_data_files")
        files = [name_inside(file["filename"], str(state)) for file in content["_data_files"]]
    except UserError:  # a ValueError too
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{given}: {state} is not what save_to_disk writes ({type(error).__name__}: {one_line(error)[:200]}); "
            "fetch the folder again"
        ) from error
    if selected:
        raise UserError(f"{folder} holds a selection of rows: save it again after Dataset.flatten_indices()")
    names = [str(folder / file) for file in files]
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise UserError(
            f"{given}: {len(missing)} of {len(names)} files are missing: {shorten_list(missing)}; fetch them again"
        )
    return names


def _open(name: str) -> tuple[int, Any]:
    """Opens a file as a mapped table; returns the file's address in memory and the table."""
    import pyarrow as pa

    try:
        require_regular(name)
        mapped = pa.memory_map(name)
        start = mapped.read_buffer().address
        mapped.seek(0)
        table = pa.ipc.open_stream(mapped).read_all()
        assert table.schema.names is not None  # decodes them
        return start, table
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column's name is no text
        raise UserError(
            f"{name} is no arrow stream, or cut short ({one_line(error)}): fetch data.path again"
        ) from error


def _ranges(name: str, start: int, column: Any) -> np.ndarray:
    """Returns offset and size in the file of each value, int64 [2, rows]; the size is -1 where it is null."""
    length, parts = Path(name).stat().st_size, [np.zeros((2, 0), np.int64)]
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, places, data = chunk.buffers()
        ends = np.frombuffer(places, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        first = (data.address if data is not None else start) - start
        if not 0 <= first <= first + ends[-1] <= length:
            raise UserError(f"{name}: its images are compressed; save it again without compression")
        sizes = np.where(chunk.is_null().to_numpy(zero_copy_only=False), -1, np.diff(ends))
        parts.append(np.stack([first + ends[:-1], sizes]))
    return np.concatenate(parts, 1)

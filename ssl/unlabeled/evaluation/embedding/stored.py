"""Reads the tables that ``unlabeled embed`` writes."""

import csv
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.core.escaping import is_formula
from unlabeled.core.reading import open_regular, read_bytes, read_text
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.embeddings import Embeddings
from unlabeled.evaluation.embedding.formats import rows_file


def read_embeddings(path: Path, given: str) -> Embeddings:
    """Reads a table by the ending of its name; every feature is that which was written, to the bit.

    Args:
        path: of a file, beside which ``NAME.rows.csv`` lies where the format needs one.
        given: the key and value that name it; errors begin with them.

    Raises:
        UserError: another ending, it cannot be read, is no such table, holds no row, or a feature is not finite.
    """
    if path.suffix not in READERS:
        raise UserError(f"{given}: the ending says what it is; allowed: {', '.join(READERS)}")
    try:
        found = READERS[path.suffix](path, given)
        shapes = {len(found.names), len(found.labels), len(found.splits), len(found.x)}
        if found.x.ndim != 2 or len(shapes) != 1:
            raise ValueError(f"{len(found.names):,} names of features {list(found.x.shape)}")
        if found.labels.max(initial=-1) >= len(found.classes):
            raise ValueError("a label of no class")
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error, zipfile.BadZipFile, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{given}: is no table of unlabeled embed, or cut short ({reason}); write it again") from error
    if not len(found) or not bool(np.isfinite(found.x).all()):
        raise UserError(f"{given}: holds {'no image' if not len(found) else 'features that are not finite'}")
    return found


def _parquet(path: Path, given: str) -> Embeddings:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as stream:
            table: Any = pq.read_table(stream)
        features = table.column("features").combine_chunks()
        x = np.asarray(features.flatten(), np.float32).reshape(len(table), -1)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    labels = np.asarray(table.column("label"), np.int64)
    named = table.column("class").to_pylist() if "class" in table.schema.names else [None] * len(labels)
    return Embeddings(x, *_texts(table.column("name").to_pylist(), labels, table.column("split").to_pylist(), named))


def _csv(path: Path, given: str) -> Embeddings:
    head, rows = _table(path, given)
    first = head.index("f0")
    x = np.array([row[first:] for row in rows], np.float32).reshape(len(rows), -1)
    return Embeddings(x, *_told(head, rows))


def _npy(path: Path, given: str) -> Embeddings:
    x = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    return Embeddings(np.asarray(x, np.float32), *_beside(path, given))


def _safetensors(path: Path, given: str) -> Embeddings:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        x = load(read_bytes(path))["features"]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return Embeddings(np.asarray(x, np.float32), *_beside(path, given))


def _npz(path: Path, given: str) -> Embeddings:
    with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as stored:
        labels = np.asarray(stored["label"], np.int64)
        classes = stored["classes"].tolist() if "classes" in stored else _numbers(labels)
        x = np.asarray(stored["features"], np.float32)
        return Embeddings(x, stored["name"].tolist(), labels, stored["split"].tolist(), classes)


def _beside(path: Path, given: str) -> tuple[list[str], Any, list[str], list[str]]:
    rows = rows_file(path)
    assert rows is not None
    if not os.path.isfile(rows):
        raise UserError(f"{given}: {rows.name} is not beside it, which unlabeled embed writes with the names")
    return _told(*_table(rows, given))


def _table(path: Path, given: str) -> tuple[list[str], list[list[str]]]:
    csv.field_size_limit(2**24)
    head, *rows = csv.reader(io.StringIO(read_text(path, given, 2**36), newline=""))
    return head, rows


def _told(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], Any, list[str], list[str]]:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(head[:4])}
    labels = np.array(columns["label"], np.int64)
    named = [_as_written(each) or None for each in columns.get("class", [""] * len(rows))]
    return _texts([_as_written(name) for name in columns["name"]], labels, columns["split"], named)


def _as_written(cell: str) -> str:
    """Takes away the apostrophe that :mod:`formats` puts before what a spreadsheet would compute."""
    return cell[1:] if cell[:1] == "'" and is_formula(cell[1:]) else cell


def _texts(
    names: list[str], labels: Any, splits: list[str], named: Sequence[str | None]
) -> tuple[list[str], Any, list[str], list[str]]:
    """Puts the class of each row into a list of classes, in the order of their labels."""
    if not any(named):
        return names, labels, splits, _numbers(labels)
    classes = _numbers(labels)
    for label, name in zip(labels.tolist(), named, strict=True):
        if label >= 0 and name is not None:
            classes[label] = name
    return names, labels, splits, classes


def _numbers(labels: Any) -> list[str]:
    return [str(number) for number in range(int(labels.max(initial=-1)) + 1)]


READERS: dict[str, Callable[[Path, str], Embeddings]] = {
    ".parquet": _parquet,
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".safetensors": _safetensors,
}

"""Embeddings as parquet, CSV, npy, npz or safetensors, written a part at a time: memory does not grow with the rows.

Read back, every feature is the same float32 to the bit.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unlabeled.core.escaping import is_formula
from unlabeled.core.writing import replacing
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.rows import Rows, class_names, classes_of


def check_ending(path: Path) -> None:
    """Raises UserError for a file name whose ending is of no format."""
    if path.suffix not in WRITERS:
        raise UserError(f"out={path}: the ending says how it is written; allowed: {', '.join(WRITERS)}")


def save(path: Path, rows: Rows) -> list[Path]:
    """Writes a table in the format that the ending of ``path`` names.

    Columns ``name``, ``label`` (-1 where there is none), ``split`` and ``features``, and ``class`` where classes have
    names. In a CSV features are f0, f1, …; npy and safetensors hold numbers alone, and NAME.rows.csv the rest, row by
    row.

    Returns:
        The files.

    Raises:
        UserError: the ending is of no format, or it cannot be written.
    """
    check_ending(path)
    write, beside = WRITERS[path.suffix], rows_file(path)
    if beside is not None:
        with replacing(beside) as unfinished:
            _csv(unfinished, rows, features=False)
    with replacing(path) as unfinished:
        write(unfinished, rows)
    return [path] if beside is None else [path, beside]


def rows_file(path: Path) -> Path | None:
    """Returns the file for names, labels and splits; None for formats that hold them themselves."""
    return path.with_suffix(".rows.csv") if path.suffix in (".npy", ".safetensors") else None


def _parquet(path: Path, rows: Rows) -> None:
    width, names = rows.shape[1], class_names(rows)
    fields = [("name", pa.string()), ("label", pa.int64()), ("split", pa.string())]
    fields += [("features", pa.list_(pa.float32(), width))] + ([("class", pa.string())] if names else [])
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema, use_dictionary=["split", "class"]) as writer:
        for chunk in rows.chunks():
            columns = [
                pa.array(chunk.names, pa.string()),
                pa.array(chunk.labels),
                pa.array(chunk.splits, pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(chunk.x.reshape(-1)), width),
            ]
            columns += [pa.array(classes_of(chunk.labels, names), pa.string())] if names else []
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _csv(path: Path, rows: Rows, features: bool = True) -> None:
    names, width = class_names(rows), rows.shape[1] if features else 0
    number = ",%.9g" * width  # nine digits tell any two float32 apart
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        head = ["name", "label", *(["class"] if names else []), "split", *(f"f{place}" for place in range(width))]
        file.write(",".join(head) + "\n")
        for chunk in rows.chunks():
            known = classes_of(chunk.labels, names) if names else [None] * len(chunk.names)
            for name, label, own, split, x in zip(
                chunk.names, chunk.labels.tolist(), known, chunk.splits, chunk.x, strict=True
            ):
                told = [_as_cell(name), label, *([_as_cell(own or "")] if names else []), split]
                file.write(_csv_line(told) + (number % tuple(x.tolist()) if width else "") + "\n")


def _as_cell(text: str) -> str:
    """Returns text with an apostrophe before what a spreadsheet would compute; all else as it is, lines too."""
    return f"'{text}" if is_formula(text) else text


def _csv_line(values: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # with another it would not quote a name of two lines
    return text.getvalue()[:-2]


def _npy(path: Path, rows: Rows) -> None:
    with path.open("wb") as file:
        _write_array(file, rows.shape, "<f4", (chunk.x for chunk in rows.chunks()))


def _npz(path: Path, rows: Rows) -> None:
    count, width = rows.shape
    longest = max((len(name) for chunk in rows.chunks() for name in chunk.names), default=1)
    broadest = max((len(split) for chunk in rows.chunks() for split in set(chunk.splits)), default=1)
    texts: dict[str, tuple[int, Callable[[Any], Any]]] = {
        "name": (longest, lambda chunk: chunk.names),
        "split": (broadest, lambda chunk: chunk.splits),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for key, (letters, column) in texts.items():
            kind = f"<U{max(letters, 1)}"
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                _write_array(file, (count,), kind, (np.array(column(chunk), kind) for chunk in rows.chunks()))
        with archive.open("label.npy", "w", force_zip64=True) as file:
            _write_array(file, (count,), "<i8", (chunk.labels for chunk in rows.chunks()))
        with archive.open("features.npy", "w", force_zip64=True) as file:
            _write_array(file, (count, width), "<f4", (chunk.x for chunk in rows.chunks()))
        if names := class_names(rows):
            with archive.open("classes.npy", "w") as file:
                array = np.array(names)
                _write_array(file, array.shape, array.dtype.str, iter([array]))


def _safetensors(path: Path, rows: Rows) -> None:
    """Writes the layout directly, in parts: the length of a JSON header, the header, the bytes of the tensors."""
    count, width = rows.shape
    features, labels = 4 * count * width, 8 * count
    head: dict[str, Any] = {
        "__metadata__": {"classes": json.dumps(rows.classes)},
        "label": {"dtype": "I64", "shape": [count], "data_offsets": [0, labels]},
        "features": {"dtype": "F32", "shape": [count, width], "data_offsets": [labels, labels + features]},
    }
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for chunk in rows.chunks():
            file.write(chunk.labels.astype("<i8").tobytes())
        for chunk in rows.chunks():
            file.write(chunk.x.astype("<f4", copy=False).tobytes())


def _write_array(file: IO[bytes], shape: tuple[int, ...], kind: str, parts: Iterator[Any]) -> None:
    head = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    for part in parts:
        file.write(np.ascontiguousarray(part, kind).tobytes())


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".parquet": _parquet,
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".safetensors": _safetensors,
}

"""Reads files that list images: a text file of paths, a CSV or a parquet file of paths and labels."""

import csv
import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.core.phrases import one_line, shorten_list
from unlabeled.core.reading import open_regular, read_text, shown_path
from unlabeled.data.lists.left_out import LeftOut, leave_out
from unlabeled.data.lists.listing import Listing, index_of
from unlabeled.errors import UserError

LISTS = (".csv", ".tsv", ".parquet", ".txt")
_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
_LABELS = ("label", "class", "class_name", "classname", "category", "target", "labels")

Rows = tuple[list[str], list[str | None]]  # path and label of each image as they stand in the file


def is_list(path: str | Path) -> bool:
    """Checks by its extension whether a file is a list of images."""
    return os.path.splitext(path)[1].lower() in LISTS


def of_list(file: Path, given: str, path_column: str | None, label_column: str | None) -> Listing:
    """Reads the images that a file lists, in its order; labels are names of classes, or whole numbers.

    Args:
        file: ``.txt``: one path per line; ``.csv``, ``.tsv`` and ``.parquet``: columns of paths and of labels. Paths
            are relative to its folder, or absolute, and never patterns.
        given: key and value that name the file, for errors.
        path_column, label_column: names of the columns; None: a column with a usual name.

    Raises:
        UserError: it cannot be read, has no such columns, or none of its files exists.
    """
    return _checked(file, given, read_rows(file, given, path_column, label_column))


def read_rows(file: Path, given: str, path_column: str | None = None, label_column: str | None = None) -> Rows:
    """Reads paths and labels as they stand in a list, whether the files are there or not; at least one.

    Raises:
        UserError: as :func:`of_list`.
    """
    end = os.path.splitext(file)[1].lower()
    if end == ".txt":
        lines = [each for each in read_text(file, given).splitlines() if each.strip()]
        rows: Rows = lines, [None] * len(lines)
    else:
        read = _of_parquet if end == ".parquet" else _of_csv
        rows = read(file, given, path_column, label_column)
    if not rows[0]:
        raise UserError(f"{given}: names no image; give a list with a path in each line or row")
    return rows


def _checked(file: Path, given: str, rows: Rows) -> Listing:
    """Keeps the first row of each file; counts the files that do not exist."""
    base, left_out, seen = _base(file, rows[0]), LeftOut(), dict[tuple[int, int], str | None]()
    paths, labels = list[bytes](), list[str | None]()
    for name, label in zip(*rows, strict=True):
        identity = _identity(base / name, name, left_out)
        if identity is None:
            continue
        if identity in seen:
            other = "" if seen[identity] == label else " with another label"
            leave_out(left_out, f"files that are listed again{other}", name)
            continue
        seen[identity] = label
        short = os.path.normpath(name)  # through a linked folder and back this may be another file
        same = ".." not in Path(name).parts or _identity(base / short, name, LeftOut()) == identity
        paths.append(os.fsencode(short if same else name))
        labels.append(label)
    if not paths:
        raise UserError(
            f"{given}: none of its {len(rows[0]):,} files is there "
            f"({shorten_list([shown_path(name) for name in rows[0][:3]])}, "
            f"relative to {base.absolute()}); mend the paths, or move the list to the folder that they start from"
        )
    classes = class_order([label for label in labels if label is not None])
    number = {name: place for place, name in enumerate(classes)}
    owners = np.array([-1 if label is None else number[label] for label in labels], np.int64)
    inodes = [inode for _, inode in seen]
    return Listing(base, index_of(paths, inodes), owners, classes, str(file), left_out, False)


def _base(file: Path, names: Sequence[str]) -> Path:
    """Returns the list's folder, absolute where one of its paths is: the images then have a common folder."""
    return Path(os.path.abspath(file.parent)) if any(os.path.isabs(name) for name in names) else file.parent


def _identity(path: Path, name: str, left_out: LeftOut) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        leave_out(left_out, "listed files that are not there", name)
        return None
    if not stat.S_ISREG(status.st_mode):
        leave_out(left_out, "listed names that are no regular files", name)
        return None
    return status.st_dev, status.st_ino


def class_order(labels: Sequence[str]) -> list[str]:
    """Sorts the classes by number where all are whole numbers, else by name."""
    names = set(labels)
    if all(name.isascii() and name.removeprefix("-").isdigit() and len(name) < 19 for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # 1 and 01 are two classes, in one order
    return sorted(names)


def _of_csv(file: Path, given: str, path_column: str | None, label_column: str | None) -> Rows:
    text = read_text(file, given)
    separator = "\t" if file.suffix.lower() == ".tsv" or text.split("\n", 1)[0].count("\t") else ","
    if separator == "," and ";" in text.split("\n", 1)[0] and "," not in text.split("\n", 1)[0]:
        separator = ";"
    try:
        table = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except csv.Error as error:
        raise UserError(f"{given}: is no CSV file ({one_line(error)}); give one with columns path and label") from error
    if not table:
        return [], []
    head = [name.strip() for name in table[0]]
    if path_column is None and not {name.lower() for name in head} & {*_PATHS} and _is_there(file.parent / head[0]):
        head, table = ["path", "label"][: len(head)] + [str(place) for place in range(2, len(head))], [[], *table]
    path, label = _columns(head, given, path_column, label_column)
    short = next((number for number, row in enumerate(table[1:], 2) if len(row) <= path), None)
    if short is not None:
        raise UserError(f"{given}: row {short} has no column {head[path]}; give each row a path")
    paths = [row[path].strip() for row in table[1:]]
    if label is None:
        return paths, [None] * len(paths)
    return paths, [row[label].strip() or None if len(row) > label else None for row in table[1:]]


def _is_there(path: Path) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):  # too long a name; a NUL in it
        return False


def _of_parquet(file: Path, given: str, path_column: str | None, label_column: str | None) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    try:
        with open_regular(file) as stream:
            table: Any = pq.read_table(stream)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{given}: is not a parquet file, or cut short ({one_line(error)}); fetch it again") from error
    path, label = _columns(table.schema.names, given, path_column, label_column)
    kind = table.schema.field(path).type
    kind = kind.value_type if kinds.is_dictionary(kind) else kind  # pandas' categories
    if not (kinds.is_string(kind) or kinds.is_large_string(kind)):
        raise UserError(
            f"{given}: column {table.schema.names[path]} is {kind}, not text: give data.path_column=… with paths, or "
            "data=parquet for a file that holds the images themselves"
        )
    try:
        names = table.column(path).cast("string").fill_null("").to_pylist()
        found = None if label is None else _without_nan(table.column(label)).cast("string").to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{given}: columns cannot be read as text ({one_line(error)}); give text or whole numbers"
        ) from error
    return names, [None] * len(names) if found is None else [each or None for each in found]


def _without_nan(column: Any) -> Any:
    """Returns the column with null for NaN, which pandas writes where a number is missing."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if not kinds.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), None, column)


def _columns(head: list[str], given: str, path: str | None, label: str | None) -> tuple[int, int | None]:
    """Returns the positions of the two columns; the label column may be missing where the user did not name it."""
    found, labels = _column(head, path, _PATHS), _column(head, label, _LABELS)
    there = f"one of {shorten_list([*map(shown_path, head)])}"
    if found is None:
        named = f"named {path}" if path else "of paths"
        raise UserError(f"{given}: has no column {named}; give data.path_column=…, {there}")
    if labels is None and label is not None:
        raise UserError(f"{given}: has no column named {label}; give data.label_column=…, {there}")
    return found, labels


def _column(head: list[str], asked: str | None, usual: tuple[str, ...]) -> int | None:
    if asked is not None:
        return head.index(asked) if asked in head else None
    lower = [name.lower() for name in head]
    return next((lower.index(name) for name in usual if name in lower), None)

"""Stores lists of millions of images as one memory-mapped file: no scan at a warm start, and no copy per worker."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.core.reading import require_regular
from unlabeled.core.writing import Unwritable, check_folder, replacing
from unlabeled.errors import UserError

MANY = 10_000  # rows: shorter lists are quick to make, and are stored only if data.index is given
_FORMAT = 3  # version of stored files; files of another version are not used

IndexNote = dict[str, Any]  # plain values that JSON holds


class Index:
    """Table of N rows with columns of integers (int64) and of bytes, and a note.

    It lies in memory, or in a mapped file that forked and spawned workers share.
    """

    def __init__(self, table: Any, file: str | None = None) -> None:
        self._table, self._file = table.combine_chunks(), file
        self.note: IndexNote = json.loads(table.schema.metadata[b"note"])
        self._texts = {
            name: self._table.column(name).chunk(0) if len(self) else []
            for name, kind in zip(table.schema.names, table.schema.types, strict=True)
            if kind != "int64"
        }

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __reduce__(self) -> Any:
        return (Index, (self._table,)) if self._file is None else (_mapped, (self._file,))

    def numbers(self, column: str) -> np.ndarray:
        """Returns an int64 column [N], read-only and not copied."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.asarray(self._table.column(column).chunk(0).to_numpy(zero_copy_only=True))

    def has(self, column: str) -> bool:
        """Checks whether a column of bytes of this name exists."""
        return column in self._texts

    def text(self, column: str, row: int) -> bytes:
        """Returns one value of a column of bytes."""
        return bytes(self._texts[column][row].as_py())


def make_index(columns: dict[str, np.ndarray | list[bytes]], note: IndexNote) -> Index:
    """Makes an index in memory from int64 arrays and lists of bytes, all with N rows."""
    return Index(_table(columns, note))


def load_or_build(
    wanted: IndexNote,
    place: str | None,
    is_fresh: Callable[[IndexNote], bool],
    make: Callable[[], tuple[dict[str, np.ndarray | list[bytes]], IndexNote]],
    always: bool = False,
) -> Index:
    """Returns the stored index for ``wanted``, or builds a new one, which is stored if it is long.

    Args:
        wanted: describes the data to index; its hash names the file.
        place: folder for the file, ``data.index``; None: ``~/.cache/unlabeled``, from :data:`MANY` rows on only.
        is_fresh: returns whether a stored note still describes the present files.
        make: scans the data; returns the columns and the note.
        always: stores short lists too, for data whose scan is slow.

    Raises:
        UserError: ``place`` cannot be written to. If the default cache cannot be written to, nothing is stored.
    """
    file = _folder(place) / f"{_digest(wanted)}.arrow"
    before = _read(file)
    if before is not None and is_fresh(before.note):
        return before
    if before is not None:
        print(f"the list of images in {file} is out of date: scanning {wanted['of']} again")
    if place is not None:
        check_folder("data.index", file.parent, [file.name])
    index = make_index(*make())
    if place is None and not always and len(index) < MANY:
        return index
    return _write(index, file, place)


def short_hash(values: Iterable[str]) -> str:
    """Returns a short, stable hash of some text."""
    return hashlib.sha256("\n".join(values).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _folder(place: str | None) -> Path:
    if place is not None:
        return Path(place).expanduser()
    return user_cache()


def user_cache() -> Path:
    """Returns the folder of this user's caches: ``~/.cache/unlabeled``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlabeled"


def _digest(wanted: IndexNote) -> str:
    return short_hash([json.dumps(wanted | {"format": _FORMAT}, sort_keys=True)])


def _table(columns: dict[str, np.ndarray | list[bytes]], note: IndexNote) -> Any:
    import pyarrow as pa

    arrays = {
        name: pa.array(values, pa.int64() if isinstance(values, np.ndarray) else pa.large_binary())
        for name, values in columns.items()
    }
    return pa.table(arrays).replace_schema_metadata({b"note": json.dumps(note)})


def _mapped(file: str) -> Index:
    import pyarrow as pa

    return Index(pa.ipc.open_file(pa.memory_map(file)).read_all(), file)


def _read(file: Path) -> Index | None:
    """Reads an index file; None where it is missing or damaged: our writes are atomic, but a disk may fail."""
    try:
        require_regular(file)
        return _mapped(str(file))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # pyarrow's errors are ValueErrors
        return None


def _write(index: Index, file: Path, place: str | None) -> Index:
    import pyarrow as pa

    try:
        with (
            replacing(file) as unfinished,
            pa.OSFile(str(unfinished), "wb") as out,
            pa.ipc.new_file(out, index._table.schema) as writer,
        ):
            writer.write_table(index._table)
    except Unwritable as error:
        if place is not None:
            raise UserError(f"data.index={place}: {error}: give a folder that can") from error
        print(f"the list of images cannot be kept: {error}; data.index=... gives another folder")
        return index
    return _mapped(str(file))

"""Reads the small files of a run: again when they change, with an error message for one that cannot be read."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlabeled.core.reading import read_bytes

LARGEST = 4 << 20  # bytes: a run writes no larger file


def is_outside(path: Path, root: Path) -> bool:
    """Returns whether a path, with links followed, is outside of the resolved folder ``root``. Raises OSError."""
    return not path.resolve().is_relative_to(root)


class Document:
    """A file that holds one mapping.

    Args:
        path: of the file, which need not exist.
        root: resolved folder; links out of it are not followed.
        parse: converts its bytes to plain values; raises ValueError.
    """

    def __init__(self, path: Path, root: Path, parse: Callable[[bytes], Any] = json.loads) -> None:
        self.path, self.root, self.parse = path, root, parse
        self.content: dict[str, Any] | None = None  # None: the file is missing or cannot be read
        self.problem: str | None = None
        self.changed: float | None = None  # Unix time
        self._seen: tuple[int, ...] | None = None

    def update(self) -> None:
        """Reads the file if it has changed; never raises for its content."""
        try:
            found = os.lstat(self.path)
        except OSError:
            self.content = self.problem = self.changed = self._seen = None
            return
        signature = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode)
        if signature != self._seen or stat.S_ISLNK(found.st_mode):
            self._seen, self.changed = signature, found.st_mtime
            self.content, self.problem = self._read(found)

    def _read(self, found: os.stat_result) -> tuple[dict[str, Any] | None, str | None]:
        try:
            if refused := _refused(self.path, found, self.root):
                return None, f"{self.path.name} {refused}"
            content = self.parse(read_bytes(self.path))
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            return None, f"{self.path.name} cannot be read: {reason}"
        if not isinstance(content, dict):
            return None, f"{self.path.name} cannot be read: it holds no keys and values"
        return content, None


def _refused(path: Path, found: os.stat_result, root: Path) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        if is_outside(path, root):
            return "is a link that leads out of the folder, and is not followed"
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    return f"has more than {LARGEST >> 20} MiB, and is not read" if found.st_size > LARGEST else None


def finite_or_none(value: Any) -> float | None:
    """Returns a finite number, or None."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value if known and abs(value) < 1e300 else None  # NaN compares as false


def flatten(values: Any, limit: int = 5_000) -> dict[str, str]:
    """Returns the values of a tree as text by their dotted names, at most ``limit`` of them."""
    found: dict[str, str] = {}
    stack = [("", values)]
    for _ in range(10 * limit):  # a tree that contains itself has no end
        if not stack or len(found) == limit:
            break
        name, value = stack.pop()
        if len(name) > 500:
            continue
        below = list(value.items()) if isinstance(value, dict) else []
        if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
            below = list(enumerate(value))
        if not below:
            found[name] = value if isinstance(value, str) else json.dumps(value, default=str)[:1000]
        join = "" if not name else "."
        stack += reversed([(f"{name}{join}{key}"[:501], each) for key, each in below])
    return found


def compared_settings(config: Any) -> dict[str, str]:
    """Returns what two runs are compared by: a class by its name in place of its ``_target_``; no name of the run."""
    found: dict[str, str] = {}
    for key, value in flatten(config).items() if config else ():
        *path, last = key.split(".")
        if last == "_target_" and path:
            found[".".join(path)] = value.rpartition(".")[2]
        elif key not in ("name", "run_dir") and last not in ("_convert_", "_partial_", "_recursive_"):
            found[key] = value
    return found

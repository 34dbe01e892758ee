"""Reads files of JSON lines that others append to: whole lines once, and a bounded part of a long file at a time."""

import os
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import IO, Any

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import open_regular

BLOCK = 1 << 20  # bytes that are read and parsed at once
LONGEST = 8  # blocks of a line; what is longer is none of ours, and its parts count as lines that cannot be read
SAMPLE, SAMPLES = 4096, 48  # bytes of a sample of a long file, and how many are taken; a line has 150 to 1,500 bytes
LARGEST = 1 << 53  # the largest step that JavaScript can represent


class GrowingFile:
    """A file that others append to. Whole lines are read once; all are read again if it was truncated or replaced.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0  # changes with every change of the content
        self._reset()

    def _reset(self) -> None:
        self.version += 1
        self.half = False  # whether the file ends in the middle of a line
        self.behind = False  # whether it has lines that were not read yet
        self.damaged = 0  # lines that cannot be read
        self._position, self._before = 0, b""  # end of what was read, and its last bytes
        self._seen: tuple[int, ...] | None = None
        self.forget()

    def update(self, most: int | None = None) -> None:
        """Reads new lines, about ``most`` bytes of them if it is given. Raises OSError."""
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            if self._seen is not None:
                self._reset()
            return
        signature = (found.st_mtime_ns, found.st_size, found.st_ino)
        if signature == self._seen and not self.behind:
            return
        with open_regular(self.path) as file:
            if self._was_replaced(file):
                self._reset()
            self._seen = signature
            self._read_on(file, found.st_size if most is None else min(most, found.st_size))

    def unread(self) -> int:
        """Returns how many bytes were not read yet; 0 if there is no file."""
        try:
            return max(0, os.stat(self.path).st_size - self._position)
        except OSError:
            return 0

    def _read_on(self, file: IO[bytes], most: int) -> None:
        end = self._position + most
        while block := self._whole_lines(file):
            self.version += 1
            self.take(block)
            if self._position >= end:
                break
        self.behind = bool(block) and self.unread() > 0

    def _was_replaced(self, file: IO[bytes]) -> bool:
        file.seek(self._position - len(self._before))
        return file.read(len(self._before)) != self._before

    def _whole_lines(self, file: IO[bytes]) -> bytes:
        file.seek(self._position)
        parts = [file.read(BLOCK)]
        while b"\n" not in parts[-1] and len(parts) < LONGEST and (more := file.read(BLOCK)):
            parts.append(more)
        read = b"".join(parts)
        end = read.rfind(b"\n") + 1
        block = read if not end and len(parts) == LONGEST else read[:end]
        self.half = len(block) < len(read)
        self._position += len(block)
        self._before = (self._before + block)[-64:]
        return block

    def forget(self) -> None:
        """Forgets what was read."""
        raise NotImplementedError

    def take(self, block: bytes) -> None:
        """Takes some whole lines."""
        raise NotImplementedError

    def objects(self, block: bytes) -> Iterator[dict[str, Any]]:
        """Yields the lines that can be parsed; counts the others."""
        for line in block.splitlines():
            try:
                read = parse_json(line)
            except (ValueError, RecursionError):
                read = None
            step = read.get("step") if isinstance(read, dict) else None
            if isinstance(step, int) and 0 <= step < LARGEST:
                yield read
            else:
                self.damaged += 1


def samples(path: Path) -> bytes:
    """Returns some whole lines of a long file, from its beginning, its end and evenly between. Raises OSError."""
    found = []
    with open_regular(path) as file:
        end = max(0, os.fstat(file.fileno()).st_size - SAMPLE)
        for place in (end * number // (SAMPLES - 1) for number in range(SAMPLES)):
            file.seek(place)
            read = file.read(SAMPLE)
            first = read.find(b"\n") + 1 if place else 0
            found.append(read[first : read.rfind(b"\n") + 1])
    return b"".join(found)


def number_or_none(value: Any) -> float | None:
    """Returns a number of JSON, infinite if it is larger than a page can show; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isinstance(value, float) or abs(value) < LARGEST else inf

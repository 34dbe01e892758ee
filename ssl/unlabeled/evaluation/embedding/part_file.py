"""What has been computed so far of a long extraction, in a file: killed and started again it goes on from there.

A line of JSON that says what it is of, then a record an image. A record is either whole or has the mark of none.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import require_regular
from unlabeled.core.writing import make_folder, one_line
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.rows import Floats, rows_at_a_time

KEPT, CORRUPT = 1, 2  # 0 is what a file system leaves where nothing has arrived
LONGEST_HEAD = 2**20


class PartFile:
    """Records of images, batch after batch.

    Args:
        path: of the file, beside what it will become; made with the first batch.
        settings: all that decides the numbers, as plain values.
        batches: number of images in each.

    Raises:
        UserError: another process writes it, or it is of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], batches: Sequence[int]) -> None:
        self.path, self.settings, self.ends = path, json.loads(json.dumps(settings)), [0, *accumulate(batches)]
        self.done = self.width = 0  # whole batches in the file, and features of each image
        self._start = self._empty = 0
        make_folder(path.parent)
        with one_line(path):
            path.touch()
            require_regular(path)
            self._file = path.open("r+b")
            self._lock()
            self._resume()

    def append(self, kept: NDArray[np.bool_], x: Floats | None) -> None:
        """Adds the next batch: which of its n images could be decoded, bool [n], and the features of those, or None."""
        if x is None and not self.width:
            self._empty += 1  # how broad a record is, is known with the first image
            return
        if x is not None and not self.width:
            self._begin(x.shape[1])
        with one_line(self.path):
            for _ in range(self._empty):
                self._write(np.zeros(self.ends[self.done + 1] - self.ends[self.done], bool), None)
            self._empty = 0
            self._write(kept, x)
            self._file.flush()

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Yields numbers of the decoded images, int64 [n], with their features [n, D], some at a time."""
        kind = _record(self.width)
        most = rows_at_a_time(self.width)
        for first in range(0, self.ends[self.done], most):
            self._file.seek(self._start + first * kind.itemsize)
            count = min(most, self.ends[self.done] - first)
            records = np.frombuffer(self._file.read(count * kind.itemsize), kind)
            rows = np.flatnonzero(records["mark"] == KEPT)
            yield rows + first, records["x"][rows]

    def close(self, remove: bool = False) -> None:
        """Closes and unlocks the file; removes it if asked to, or if it holds nothing."""
        if remove or not self.width:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, kept: NDArray[np.bool_], x: Floats | None) -> None:
        records = np.zeros(len(kept), _record(self.width))
        records["mark"] = np.where(kept, KEPT, CORRUPT)
        if x is not None:
            records["x"][kept] = x
        self._file.write(records.tobytes())
        self.done += 1

    def _begin(self, width: int) -> None:
        with one_line(self.path):
            self._file.write(json.dumps({"width": width, "settings": self.settings}).encode() + b"\n")
            self._start, self.width = self._file.tell(), width

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(f"{self.path}: another process writes it; wait for it, or give another out=…") from error

    def _resume(self) -> None:
        """Keeps the whole batches of a file that is there; what came after them is written again."""
        head = _head(self._file.readline(LONGEST_HEAD))
        if head is None:  # new, or killed before a batch was there
            self._file.truncate(0)
            self._file.seek(0)
            return
        self._check(head["settings"])
        self.width, self._start = head["width"], self._file.tell()
        arrived = self._arrived()
        self.done = sum(end <= arrived for end in self.ends[1:])
        self._file.truncate(self._start + self.ends[self.done] * _record(self.width).itemsize)
        self._file.seek(0, os.SEEK_END)

    def _arrived(self) -> int:
        """Counts whole records from the first on: after a loss of power a file may end in zeros."""
        kind = _record(self.width)
        size, count = rows_at_a_time(self.width) * kind.itemsize, 0
        while data := self._file.read(size):
            marks = np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind)["mark"]
            broken = ~np.isin(marks, (KEPT, CORRUPT))
            if broken.any():
                return count + int(broken.argmax())
            count += len(marks)
        return count

    def _check(self, settings: Mapping[str, Any]) -> None:
        if settings != self.settings:
            self._file.close()
            raise UserError(
                f"{self.path}: was begun with {other_settings(settings, self.settings)}; remove it to begin anew, or "
                "give another out=…"
            )


def other_settings(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Says in which settings two tables differ."""
    different = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    return f"another {', '.join(different)}"


def _head(line: bytes) -> dict[str, Any] | None:
    try:
        head = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(head, dict) or not isinstance(head.get("settings"), dict) or type(head.get("width")) is not int:
        return None
    return head if head["width"] > 0 else None


def _record(width: int) -> np.dtype[Any]:
    return np.dtype([("mark", "<i4"), ("x", "<f4", (width,))])

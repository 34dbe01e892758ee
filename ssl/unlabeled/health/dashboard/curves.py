"""Reads ``metrics.jsonl`` while it grows, and reduces curves to as many points as a page can show."""

import re
from array import array
from collections.abc import Iterator, Sequence
from math import inf, isfinite, nan
from pathlib import Path
from typing import IO, Any

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import open_regular

Point = tuple[int, float | None]  # step and value; None: not finite

BLOCK = 1 << 24  # bytes read at once
KEPT = 20_000  # points of a curve in memory; a longer one is reduced to half of that
LARGEST = 1 << 53  # the largest step that JavaScript can represent
LOSS, PROBE = "train/loss", "probe/"
# A line as JsonLines writes it, with its step and its loss, if it has one: four times as fast as json
_LINE = re.compile(
    rb'^\{"step": (\d{1,15}), (?:[^\n]*?"train/loss": (-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|NaN|-?Infinity))?[^\n]*\}$',
    re.MULTILINE,
)


class Curve:
    """Values by step, in the order of the file."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")
        self.last: float | None = None

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        if not values:
            return
        self.steps.extend(steps)
        self.values.extend(values)
        self.last = values[-1] if isfinite(values[-1]) else None
        if len(self.values) > KEPT:
            points = self.downsample(KEPT // 2)
            self.steps = array("q", [step for step, _ in points])
            self.values = array("d", [nan if value is None else value for _, value in points])

    def downsample(self, limit: int) -> list[Point]:
        """Returns at most ``limit`` points: the extremes of each interval, and values that are not finite."""
        n = len(self.values)
        if n <= limit:
            return [_point(step, value) for step, value in zip(self.steps, self.values, strict=True)]
        finite = isfinite(sum(self.values))
        size = -(-n // (limit // 2 if finite else limit // 3))
        return [point for start in range(0, n, size) for point in self._extremes(start, start + size, finite)]

    def _extremes(self, start: int, end: int, finite: bool) -> Iterator[Point]:
        values = self.values[start:end]
        known = values if finite else array("d", filter(isfinite, values))
        if len(known) < len(values):
            first = next(place for place, value in enumerate(values) if not isfinite(value))
            yield self.steps[start + first], None
        if known:
            for place in sorted({values.index(min(known)), values.index(max(known))}):
                yield _point(self.steps[start + place], values[place])


def _point(step: int, value: float) -> Point:
    return step, float(f"{value:.6g}") if isfinite(value) else None


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
        self.damaged = 0  # lines that cannot be read
        self._position, self._before = 0, b""  # end of what was read, and its last bytes
        self.forget()

    def update(self) -> None:
        """Reads new lines. Raises OSError."""
        if not self.path.exists():
            self._reset()
            return
        with open_regular(self.path) as file:
            if self._was_replaced(file):
                self._reset()
            while block := self._whole_lines(file):
                self.version += 1
                self.take(block)

    def _was_replaced(self, file: IO[bytes]) -> bool:
        file.seek(self._position - len(self._before))
        return file.read(len(self._before)) != self._before

    def _whole_lines(self, file: IO[bytes]) -> bytes:
        file.seek(self._position)
        read = file.read(BLOCK)
        block = read[: read.rfind(b"\n") + 1]
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


class CurveSummary(GrowingFile):
    """What a list of many runs shows of one: the curves of loss and probes, and its progress."""

    def forget(self) -> None:
        self.loss = Curve()
        self.probes: dict[str, Curve] = {}
        self.step = 0
        self.steps_per_epoch: int | None = None

    def take(self, block: bytes) -> None:
        if not self._take_quickly(block):
            for read in self.objects(block):
                if (loss := _number(read.get(LOSS))) is not None:
                    self.loss.extend([read["step"]], [loss])
                self._take_probes(read)
                self._take_position(read)

    def _take_quickly(self, block: bytes) -> bool:
        """Takes lines by a fast path. Returns False and takes nothing if a line has another format or is damaged."""
        found = _LINE.findall(block)
        if len(found) < block.count(b"\n"):
            return False
        known = [(int(step), float(value)) for step, value in found if value]
        self.loss.extend([step for step, _ in known], [value for _, value in known])
        for read in self.objects(_lines_with(PROBE, block)):
            self._take_probes(read)
        for read in self.objects(block[block.rfind(b"\n", 0, -1) + 1 :]):
            self._take_position(read)
        return True

    def _take_probes(self, read: dict[str, Any]) -> None:
        for name, given in read.items():
            if name.startswith(PROBE) and (value := _number(given)) is not None:
                self.probes.setdefault(name, Curve()).extend([read["step"]], [value])

    def _take_position(self, read: dict[str, Any]) -> None:
        self.step, epoch = read["step"], _number(read.get("epoch"))
        if epoch and isfinite(epoch):
            self.steps_per_epoch = max(1, round(self.step / epoch))


class RunCurves(GrowingFile):
    """All curves of a run, by name."""

    def forget(self) -> None:
        self.curves: dict[str, Curve] = {}

    def take(self, block: bytes) -> None:
        found: dict[str, tuple[list[int], list[float]]] = {}
        for read in self.objects(block):
            for name, given in read.items():
                if name not in ("step", "epoch") and (value := _number(given)) is not None:
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(read["step"])
                    values.append(value)
        for name, (steps, values) in found.items():
            self.curves.setdefault(name, Curve()).extend(steps, values)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isinstance(value, float) or abs(value) < LARGEST else inf


def _lines_with(word: str, block: bytes) -> bytes:
    """Returns the lines of a block that contain a word; faster than testing line by line."""
    found, end, sought = [], 0, b'"' + word.encode()
    while (place := block.find(sought, end)) >= 0:
        end = block.index(b"\n", place) + 1
        found.append(block[block.rfind(b"\n", 0, place) + 1 : end])
    return b"".join(found)

"""Keeps the curves of ``metrics.jsonl`` while it grows, and reduces them to as many points as a page can show."""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from math import isfinite, nan
from pathlib import Path
from typing import Any

from unlabeled.health.dashboard.growing import GrowingFile, number_or_none, samples

Point = tuple[int, float | None]  # step and value; None: not finite

KEPT, LISTED = 4_000, 1_000  # points of a curve in memory, and of one of the list; a longer one is reduced to half
LOSS, PROBE = "train/loss", "probe/"
_LOSS = b'"train/loss": '
# Lines as JsonLines writes them, with step and loss, if they have one: with the loss behind the epoch, as in our runs,
# 15 times as fast as json; with the loss anywhere four times.
_NUMBER = rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|NaN|-?Infinity"
_OURS = re.compile(
    rb'^\{"step": (\d{1,15}), "epoch": [^,}\n]*(?:, "train/loss": (' + _NUMBER + rb"))?[^\n]*\}$", re.MULTILINE
)
_LINE = re.compile(rb'^\{"step": (\d{1,15}), (?:[^\n]*?"train/loss": (' + _NUMBER + rb"))?[^\n]*\}$", re.MULTILINE)


class Curve:
    """Values by step, in the order of the file.

    Args:
        kept: points in memory; a longer curve is reduced to half of them.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self.steps, self.values = array("q"), array("d")
        self.first: float | None = None
        self.last: float | None = None
        self._in_order = True

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        if not values:
            return
        if not self.values:
            self.first = values[0] if isfinite(values[0]) else None
        self._in_order &= list(steps) == sorted(steps) and (not self.steps or steps[0] >= self.steps[-1])
        self.steps.extend(steps)
        self.values.extend(values)
        self.last = values[-1] if isfinite(values[-1]) else None
        if len(self.values) > self.kept:
            points = self.downsample(self.kept // 2)
            self.steps = array("q", [step for step, _ in points])
            self.values = array("d", [nan if value is None else value for _, value in points])

    def cut(self, step: int) -> None:
        """Forgets the values from a step on: they are repeated by a run that was resumed before it."""
        place = bisect_left(self.steps, step)
        del self.steps[place:], self.values[place:]

    def downsample(self, limit: int) -> list[Point]:
        """Returns at most ``limit`` points: the extremes of equal intervals of steps, and values that are not
        finite.
        """
        if len(self.values) <= limit:
            return [_point(step, value) for step, value in zip(self.steps, self.values, strict=True)]
        finite = isfinite(sum(self.values))
        edges = self._edges(limit // 2 if finite else limit // 3)
        return [point for start, end in pairwise(edges) if start < end for point in self._extremes(start, end, finite)]

    def _edges(self, intervals: int) -> list[int]:
        """Returns where intervals begin, and the end. By steps, or a curve that was reduced would lose its old part."""
        n, first = len(self.steps), self.steps[0]
        if not self._in_order:
            return [n * number // intervals for number in range(intervals + 1)]
        width = self.steps[-1] - first + 1
        return [bisect_left(self.steps, first + -(-width * number // intervals)) for number in range(intervals)] + [n]

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


class CurveSummary(GrowingFile):
    """What a list of many runs shows of one: the curves of loss and probes, and its progress."""

    def forget(self) -> None:
        self.loss = Curve(LISTED)
        self.probes: dict[str, Curve] = {}
        self.step = 0
        self.steps_per_epoch: int | None = None
        self._sketch: CurveSummary | None = None

    def sketch(self) -> None:
        """Looks at some lines of a long file, to be shown until all are read. Raises OSError."""
        self._sketch, self.behind = CurveSummary(self.path), True
        self._sketch.take(samples(self.path))
        self.version += 1

    @property
    def shown(self) -> "CurveSummary":
        """Returns what there is to show: of all lines, or of some while not all are read."""
        return self._sketch if self.behind and self._sketch is not None else self

    def take(self, block: bytes) -> None:
        if not self._take_quickly(block):
            for read in self.objects(block):
                if (loss := number_or_none(read.get(LOSS))) is not None:
                    self.loss.extend([read["step"]], [loss])
                self._take_probes(read)
                self._take_position(read)

    def _take_quickly(self, block: bytes) -> bool:
        """Takes lines by a fast path. Returns False and takes nothing if a line has another format or is damaged."""
        found = _OURS.findall(block)
        if sum(1 for _, loss in found if loss) < block.count(_LOSS):
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
            if name.startswith(PROBE) and (value := number_or_none(given)) is not None:
                self.probes.setdefault(name, Curve(LISTED)).extend([read["step"]], [value])

    def _take_position(self, read: dict[str, Any]) -> None:
        self.step, epoch = read["step"], number_or_none(read.get("epoch"))
        if epoch and isfinite(epoch):
            self.steps_per_epoch = max(1, round(self.step / epoch))


class RunCurves(GrowingFile):
    """All curves of a file of JSON lines, by name.

    Args:
        path: of the file.
        prefix: of the names.
        cut: whether lines of a step that was read before replace those from that step on: a resumed run repeats steps.
    """

    def __init__(self, path: Path, prefix: str = "", cut: bool = False) -> None:
        self.prefix, self.cut = prefix, cut
        super().__init__(path)

    def forget(self) -> None:
        self.curves: dict[str, Curve] = {}
        self._step = -1

    def take(self, block: bytes) -> None:
        found: dict[str, tuple[list[int], list[float]]] = {}
        for read in self.objects(block):
            if self.cut and read["step"] <= self._step:
                self._put(found)
                for curve in self.curves.values():
                    curve.cut(read["step"])
                found = {}
            self._step = read["step"]
            for name, given in read.items():
                if name not in ("step", "epoch") and (value := number_or_none(given)) is not None:
                    steps, values = found.setdefault(self.prefix + name, ([], []))
                    steps.append(read["step"])
                    values.append(value)
        self._put(found)

    def _put(self, found: dict[str, tuple[list[int], list[float]]]) -> None:
        for name, (steps, values) in found.items():
            self.curves.setdefault(name, Curve()).extend(steps, values)


def _lines_with(word: str, block: bytes) -> bytes:
    """Returns the lines of a block that contain a word; faster than testing line by line."""
    found, end, sought = [], 0, b'"' + word.encode()
    while (place := block.find(sought, end)) >= 0:
        end = block.index(b"\n", place) + 1
        found.append(block[block.rfind(b"\n", 0, place) + 1 : end])
    return b"".join(found)


def read_some(growing: CurveSummary, most: int) -> None:
    """Reads new lines of a file; of a long one some now, and the others by and by. Raises OSError."""
    with suppress(FileNotFoundError):
        if growing.unread() > most:
            if not growing.behind:
                growing.sketch()
            return
    growing.update()

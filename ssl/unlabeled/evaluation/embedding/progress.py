"""How far an extraction is, and how fast: a bar on a terminal, a line in a notebook, a line now and then elsewhere."""

import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0  # seconds between lines


class ImageProgress:
    """Counts images.

    Args:
        total: of them.
        done: before this process began.
        log: takes a line now and then where output is neither a terminal nor a notebook.
    """

    def __init__(self, total: int, done: int, log: Callable[[str], None]) -> None:
        self.total, self.done, self.log = total, done, log
        self.first, self.began = done, time.monotonic()
        self._said, self.console = self.began, Console()
        self._bar: Progress | None = None
        if self.console.is_terminal and not self.console.is_jupyter:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.add_task("embedding", total=total, completed=done)
            self._bar.start()

    def speed(self) -> float:
        """Returns images per second of this process."""
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    def __call__(self, images: int) -> None:
        """Counts so many more images as done."""
        self.done += images
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, description=f"{self.speed():,.0f} images/s")
        elif self.console.is_jupyter:
            print(f"\r{self._line()}", end="\n" if self.done >= self.total else "", flush=True)
        elif time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            self.log(self._line())

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self) -> str:
        left = timedelta(seconds=round((self.total - self.done) / max(self.speed(), 1e-9)))
        return f"{self.done:,} of {self.total:,} images  {self.speed():,.0f} images/s  {left} left"

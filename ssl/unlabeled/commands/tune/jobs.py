"""Trials side by side: a process each, which the search gives values and asks for scores."""

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from unlabeled.commands.tune.history import Trial
from unlabeled.commands.tune.sampler import Sampler
from unlabeled.commands.tune.space import assignments
from unlabeled.commands.tune.worker import work

SECONDS = 30  # that a process gets to end by itself


@dataclass
class _Job:
    """A process and the trial that it trains."""

    process: BaseProcess
    connection: Connection
    asked: Any = None  # Optuna's trial; None: idle
    number: int = 0
    scores: dict[int, float] = field(default_factory=dict)
    begun: float = 0.0


class Jobs:
    """Trains trials of a search in ``count`` processes.

    Args:
        sampler: says what is tried.
        fixed: overrides of every trial.
        folder: below which every trial has its own.
        gpus: names of the GPUs for ``CUDA_VISIBLE_DEVICES``; empty: none is chosen.
        picked: returns further overrides for the values of a trial.
    """

    def __init__(
        self,
        sampler: Sampler,
        fixed: Sequence[str],
        folder: Path,
        gpus: Sequence[str],
        picked: Callable[[Mapping[str, Any]], Sequence[str]] = lambda values: (),
    ) -> None:
        self.sampler, self.fixed, self.folder, self.gpus = sampler, list(fixed), folder, gpus
        self.picked = picked
        self._jobs: list[_Job] = []

    def run(self, numbers: Iterator[int], count: int, may_begin: Callable[[], bool]) -> Iterator[Trial]:
        """Yields each trial when it is over.

        Args:
            numbers: of the trials to train.
            count: of processes.
            may_begin: asked before each trial; when it is false, those that run are awaited and no other is begun.
        """
        self._jobs = [self._started(position) for position in range(count)]
        for job in self._jobs:
            self._begin(job, numbers, may_begin)
        while busy := [job for job in self._jobs if job.asked is not None]:
            for connection in wait([job.connection for job in busy]):
                job = next(each for each in busy if each.connection is connection)
                trial = self._heard(job)
                if trial is not None:
                    self.sampler.tell(job.asked, trial)
                    job.asked = None
                    yield trial
                    self._begin(job, numbers, may_begin)

    def close(self) -> None:
        """Ends the processes; a trial that one still trains is lost."""
        for job in self._jobs:
            job.connection.close()  # which ends a process that waits for an answer or for a trial
            if job.asked is not None:
                job.process.terminate()  # which ends one that trains, after its step
        for job in self._jobs:
            job.process.join(SECONDS)
            job.process.kill()

    def _started(self, position: int) -> _Job:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        gpu = self.gpus[position % len(self.gpus)] if self.gpus else None
        process = context.Process(target=work, args=(theirs, gpu))
        process.start()
        theirs.close()  # so that reading ends when the process does
        return _Job(process, ours)

    def _begin(self, job: _Job, numbers: Iterator[int], may_begin: Callable[[], bool]) -> None:
        number = next(numbers, None) if may_begin() else None
        if number is None:
            return
        if not job.process.is_alive():
            fresh = self._started(self._jobs.index(job))
            job.process, job.connection = fresh.process, fresh.connection
        job.asked, job.number, job.scores, job.begun = self.sampler.ask(number), number, {}, time.monotonic()
        folder = self.folder / f"{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a search that was stopped: its scores are not in the history
        values = job.asked.params
        overrides = [*self.fixed, *self.picked(values), *assignments(values), f"run_dir={folder}"]
        with suppress(OSError):  # where the process is gone, reading from it says so
            job.connection.send((overrides, str(folder)))

    def _heard(self, job: _Job) -> Trial | None:
        """Takes one message; returns the trial if it is over."""
        try:
            kind, first, second = job.connection.recv()
        except (EOFError, OSError):
            job.process.join()
            reason = f"its process ended with status {job.process.exitcode}"
            return self._trial(job, "failed", reason, time.monotonic() - job.begun)
        if kind != "score":
            return self._trial(job, kind, first, second)
        job.scores[first] = second
        job.asked.report(second, first)
        with suppress(OSError):
            job.connection.send(self.sampler.goes_on(job.asked, first))
        return None

    def _trial(self, job: _Job, state: Any, reason: str, seconds: float) -> Trial:
        return Trial(job.number, dict(job.asked.params), state, dict(job.scores), round(seconds, 1), reason)

"""Ends all processes within seconds when one fails; prints its traceback and one line that says how to go on."""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

STOPPED = (
    0,
    128 + signal.SIGINT,
    128 + signal.SIGTERM,
    128 + signal.SIGUSR1,
)  # exit codes of processes that end on request
GRACE = 3.0  # seconds for a process to end by its own error before it is killed
SILENCE = 10.0  # seconds without an answer of process 0, which may be ending normally


class Watchdog:
    """Watches the other processes from a thread, and the last exception of this one.

    The process that fails first writes its error into the shared store and prints its traceback; the others print why
    they end, without a traceback of consequent errors. A killed process writes nothing: its parent sees it end. Without
    the watchdog, GPUs would wait for the others until the timeout.

    Args:
        rank, processes: index of this process, and their number.
        children: processes that this one has started, of the next ranks on this machine.
        store: a separate connection, not the one on which the main thread may be waiting.
        answers: returns whether process 0 can be reached; torch prints long traces if it cannot.
        checkpoint: of the run.
    """

    def __init__(
        self,
        rank: int,
        processes: int,
        children: Sequence["subprocess.Popen[bytes]"],
        store: Store,
        answers: Callable[[], bool],
        checkpoint: Path,
    ) -> None:
        self.rank, self.processes, self.children = rank, processes, children
        self.store, self.answers, self.checkpoint = store, answers, checkpoint
        self._ending, self._leaving = threading.Lock(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="together", daemon=True)

    def watch(self) -> None:
        """Watches the other processes from now on until Python ends."""
        self._watcher.start()
        atexit.register(self._stop_thread)

    def _stop_thread(self) -> None:
        """Ends the thread before Python ends: a thread stopped inside of torch would abort the process."""
        self._leaving.set()
        self._watcher.join(SILENCE)

    def catch(self) -> None:
        """Handles this process's last exception.

        Must be called after torch sets its own hook, which holds output back.
        """
        self._print_traceback, sys.excepthook = sys.excepthook, self._on_exception

    def _watch(self) -> None:
        heard, world = time.monotonic(), None
        while not self._leaving.wait(1):
            now = dist.group.WORLD if dist.is_initialized() else None
            world = world or now
            if now is not world:  # the common work is done
                return
            if self.answers():
                heard = time.monotonic()
            cause = self._cause() or ("process 0 does not answer" if time.monotonic() - heard > SILENCE else None)
            if cause:
                time.sleep(GRACE)
                self._end(self._cause() or cause)

    def _cause(self) -> str | None:
        """Returns the known cause of the first failure: a killed child, a process's message, or a child that ended."""
        host, ended = socket.gethostname(), None
        for rank, child in enumerate(self.children, self.rank + 1):
            code = child.poll()
            if code is not None and code < 0:
                return f"process {rank} on {host} was killed by {signal.Signals(-code).name}"
            if code is not None and code not in STOPPED:
                ended = f"process {rank} on {host} ended with code {code}"
        if self.answers():
            with contextlib.suppress(dist.DistError):
                return self.store.get("failed").decode() if self.store.check(["failed"]) else ended
        return ended

    def _on_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Reports an uncaught exception; Python calls this as its last act."""
        what = traceback.format_exception_only(error)[-1].strip().splitlines()[0][:200]
        lost = isinstance(error, dist.DistError) or "by peer" in str(error)  # gloo's message for a lost connection
        how = f"lost another one ({what})" if lost else f"failed with {what}"
        own = f"process {self.rank} on {socket.gethostname()} {how}"
        if lost or not self._report_first(own):
            time.sleep(1)  # until the other process has reported its error or is known to be dead
        cause = self._cause() or own
        try:
            if cause == own:
                self._print_traceback(kind, error, trace)
        finally:
            self._end(cause)

    def _report_first(self, cause: str) -> bool:
        """Reports the cause to the other processes; returns False if another failure was reported before."""
        if self.answers():
            with contextlib.suppress(dist.DistError):
                if self.store.add("failures", 1) > 1:
                    return False
                self.store.set("failed", cause)
        return True

    def _end(self, cause: str) -> None:
        with self._ending:  # never released
            try:
                if self.children:  # only this process may know it
                    self._report_first(cause)
                end_children(self.children, GRACE)
                how = (
                    f"goes on from {self.checkpoint}" if self.checkpoint.exists() else "starts anew: no checkpoint yet"
                )
                print(f"process {self.rank} of {self.processes} ends: {cause}. The same command {how}", file=sys.stderr)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:  # also if the output is closed
                os._exit(1)  # a normal exit may wait for messages that never come


def end_children_at_exit(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ends the child processes however this process ends, except by SIGKILL."""
    atexit.register(end_children, children, SILENCE)


def end_children(children: Sequence["subprocess.Popen[bytes]"], patience: float) -> None:
    """Kills those that do not end by themselves within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        child.kill()

"""Processes that are forked off a server which has torch and this project imported: that takes seconds."""

import atexit
import multiprocessing
import multiprocessing.util
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])


def spawn(work: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Run ``work(rank, *arguments)`` in so many processes; raises what one of them raises."""
    from torch.multiprocessing.spawn import start_processes

    start_processes(work, arguments, processes, start_method="forkserver")  # type: ignore[no-untyped-call]


def write_to(output: str, errors: str) -> None:
    """From now on this process prints into files."""
    print_into(*(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for path in (output, errors)))


def print_into(output: int, errors: int) -> None:
    """As ``write_to``, into open files."""
    for number, file in ((1, output), (2, errors)):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115


def script(
    path: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float = 300
) -> "subprocess.CompletedProcess[str]":
    """``python PATH arguments…`` in a folder, with this environment."""
    output, errors = folder.with_suffix(".stdout"), folder.with_suffix(".stderr")
    for each in (output, errors):
        each.write_text("")
    process = SERVER.Process(
        target=_into_files, args=(str(output), str(errors), str(path), list(arguments), str(folder), dict(environment))
    )
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    code = process.exitcode
    assert code is not None
    return subprocess.CompletedProcess([str(path), *arguments], code, output.read_text(), errors.read_text())


class Begun:
    """``python PATH arguments…`` that goes on by itself, with what there is of :class:`subprocess.Popen`.

    Both of its streams are one pipe, which the processes that it starts hold as well.
    """

    def __init__(
        self, path: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], session: bool = False
    ) -> None:
        read, write = Pipe(duplex=False)
        self._process = SERVER.Process(
            target=_into_pipe, args=(write, session, str(path), list(arguments), str(folder), dict(environment))
        )
        self._process.start()
        write.close()
        self.stdout = os.fdopen(os.dup(read.fileno()), encoding="utf-8")
        read.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """All that was printed, once nobody can print any more and the process has ended."""
        deadline = time.monotonic() + timeout
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        self.wait(max(1.0, deadline - time.monotonic()))
        return printed[0], None


def _into_files(output: str, errors: str, *given: Any) -> None:
    write_to(output, errors)
    _script(*given)


def _into_pipe(write: Connection, session: bool, *given: Any) -> None:
    if session:
        os.setsid()
    print_into(write.fileno(), write.fileno())
    write.close()
    _script(*given)


def _script(path: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Does not return; ends as Python does, with what ``sys.excepthook`` and ``atexit`` were given."""
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of its own workers, as is Python's
    atexit._clear()  # of the server's
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = environment["PYTHONPATH"].split(":")
    sys.argv = [path, *arguments]
    code = _status_of(path)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for other threads
    atexit._run_exitfuncs()
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # ends loader workers
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _status_of(path: str) -> int:
    """The exit status of a script that is run."""
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0

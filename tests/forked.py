"""Processes that are forked off a server which has torch and this project imported: that takes seconds."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
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
    for number, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115


def script(
    path: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float = 300
) -> "subprocess.CompletedProcess[str]":
    """``python PATH arguments…`` in a folder, with this environment; what ``atexit`` was given is not called."""
    output, errors = folder.with_suffix(".stdout"), folder.with_suffix(".stderr")
    for each in (output, errors):
        each.write_text("")
    process = SERVER.Process(
        target=_script, args=(str(path), list(arguments), str(folder), dict(environment), str(output), str(errors))
    )
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    code = process.exitcode
    assert code is not None
    return subprocess.CompletedProcess([str(path), *arguments], code, output.read_text(), errors.read_text())


def _script(
    path: str, arguments: list[str], folder: str, environment: dict[str, str], output: str, errors: str
) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of its own workers, as is Python's
    write_to(output, errors)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = environment["PYTHONPATH"].split(":")
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")

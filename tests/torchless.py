"""Runs commands in a Python that cannot import torch: whatever they answer, they answer without it.

``python -m tests.torchless < cases.json``, each case a list of arguments and a folder; prints a result for each. A case
is a fork of one process that has the command line imported, so that hundreds take seconds.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ENVIRONMENT, ROOT

PROGRAMS = {"train.py": "unlabeled.commands.train.train", "eval_linear.py": "unlabeled.commands.evaluate.evaluate"}


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    printed: str  # on both streams
    seconds: float


def answers(cases: Sequence[tuple[list[str], Path]]) -> list[Answer]:
    """Of each case: the command, its name first, and the folder in which it is given."""
    given = json.dumps([[arguments, str(folder)] for arguments, folder in cases])
    command = [sys.executable, "-m", "tests.torchless"]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(command, input=given, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [Answer(*each) for each in json.loads(done.stdout)]


def _in_a_fork(arguments: list[str], folder: str) -> tuple[int, str, float]:
    read, write = os.pipe()
    started = time.monotonic()
    process = os.fork()
    if not process:
        os.close(read)
        for stream in (1, 2):
            os.dup2(write, stream)
        os.chdir(folder)
        _command(arguments)
    os.close(write)
    with os.fdopen(read) as pipe:
        printed = pipe.read()
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), printed, time.monotonic() - started


def _command(arguments: list[str]) -> None:
    """Does not return."""
    code = 1
    try:
        sys.argv = ["/bin/unlabeled", *arguments]
        if arguments[0] in PROGRAMS:
            sys.argv = arguments
            __import__(PROGRAMS[arguments[0]], fromlist=["main"]).main()
        else:
            from unlabeled.commands.entry_points.console import main

            main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it raises ImportError
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    import unlabeled.commands.config
    import unlabeled.commands.entry_points.console
    import unlabeled.commands.train.train  # noqa: F401

    given = json.load(sys.stdin)
    Plugins.instance()  # looks for them once, not in each fork
    if len(given) > 20:
        for path in (ROOT / "conf").rglob("*.yaml"):
            OmegaConf.load(path)
    gc.freeze()  # a fork that collects garbage copies no pages of what is here
    print(json.dumps([_in_a_fork(*case) for case in given]))

"""What several tests need: the repository's root, and a way to run its scripts as a user does."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import forked, parsed_once, unsynced  # noqa: F401

ROOT = Path(__file__).parents[1]
Script = Callable[..., "subprocess.CompletedProcess[str]"]

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores Ctrl-C for what it starts behind "&", and so would every process that a test starts and stops by it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: two processes on two cores, and sums that do not depend on how many cores a machine has.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "ssl"), "WANDB_MODE": "offline", "COLUMNS": "200"}


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kept features and lists of images go to a folder of this session, here and in the processes that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs ``python SCRIPT overrides…`` in an empty folder and returns the finished process, output captured.

    It is forked off a process that has everything imported; ``python`` is as slow and as empty as a user's.
    """

    def run(name: str, *overrides: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return forked.script(ROOT / name, overrides, tmp_path, os.environ | ENVIRONMENT | environment)

    return run


@pytest.fixture
def python(tmp_path: Path) -> Script:
    """As ``script``, by a Python of its own."""

    def run(name: str, *overrides: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(ROOT / name), *overrides],
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run

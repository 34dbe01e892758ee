"""A signal outside of the training itself, while a run is made ready or evaluated: one line, no traceback.

Within the training :class:`unlabeled.training.checkpointing.Checkpointing` takes the signals and writes a state.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; end of a job's time; Slurm's --signal=USR1@120


class Stopped(SystemExit):
    """Raised by a signal, so that whatever the process is at ends in order."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def stoppable(line: Callable[[int], str]) -> Iterator[None]:
    """End the process with a line where it gets a signal inside the block.

    Args:
        line: says, for the number of the signal, what is kept and how to go on.

    Raises:
        SystemExit: 128 and the number of the signal, as shells have it.
    """
    if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
        yield
        return
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            _end_as_always(number)
        for each in SIGNALS:  # a second one does not break the end
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        if _is_first_process():
            print(f"\n{signal.Signals(stopped.number).name}: {line(stopped.number)}", flush=True)
        raise SystemExit(128 + stopped.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_as_always(number: int) -> NoReturn:
    """In a process that was forked inside the block, such as a worker."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    sys.exit(128 + number)


def _is_first_process() -> bool:
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))

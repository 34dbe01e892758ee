"""Imports without what takes long and finds nothing: the garbage collector, and packages that nobody here asks for."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def heavy_imports() -> Iterator[None]:
    """To import what stays until Python ends: torch and Lightning are 700,000 objects, left alone till then.

    Python's documentation names ``gc.freeze`` for processes that fork, as a DataLoader does to get its workers: pages
    that no collection writes to are not copied.
    """
    gc.disable()
    try:
        with _without_signal_processing():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _without_signal_processing() -> Iterator[None]:
    """An empty ``scipy.signal`` for the while: torchmetrics, which Lightning imports, imports it for one old name.

    ``scipy.stats`` comes with it, and a tenth of the time to the first step. Later imports get the real one.
    """
    name = "scipy.signal"
    if name in sys.modules:
        yield
        return
    import scipy  # type: ignore[import-untyped]

    stand_in = ModuleType(name)
    stand_in.hamming = None  # type: ignore[attr-defined]  # torchmetrics/__init__.py sets it where it is missing
    sys.modules[name] = scipy.signal = stand_in
    try:
        yield
    finally:
        del sys.modules[name], scipy.signal


atexit.register(gc.unfreeze)  # else Triton's bindings print what they take for leaks

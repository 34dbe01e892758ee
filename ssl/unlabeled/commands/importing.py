"""Imports without what takes long and finds nothing: the garbage collector, and packages that nobody here asks for."""

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def heavy_imports() -> Iterator[None]:
    """To import what stays until Python ends: torch and Lightning are 700,000 objects, left alone till then.

    Python's documentation names ``gc.freeze`` for processes that fork, as a DataLoader does to get its workers: pages
    that no collection writes to are not copied.
    """
    known = len(sys.modules)
    gc.disable()
    try:
        with _without_signal_processing():
            yield
    finally:
        if len(sys.modules) > known:  # a second run of a notebook imports nothing, and what it left must be collected
            gc.freeze()
        gc.enable()


@contextmanager
def _without_signal_processing() -> Iterator[None]:
    """``scipy.signal`` is imported by whom takes something of it: torchmetrics, of Lightning, sets an old name in it.

    ``scipy.stats`` would come with it, and a tenth of the time to the first step.
    """
    name = "scipy.signal"
    if name in sys.modules:
        yield
        return
    import scipy  # type: ignore[import-untyped]

    stand_in = ModuleType(name)

    def from_the_real_one(attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__path__":  # inspect asks all modules for their __file__
            raise AttributeError(attribute)
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in.hamming = None  # type: ignore[attr-defined]  # the old name
    stand_in.__getattr__ = from_the_real_one  # type: ignore[method-assign]
    sys.modules[name] = scipy.signal = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name], scipy.signal


atexit.register(gc.unfreeze)  # else Triton's bindings print what they take for leaks

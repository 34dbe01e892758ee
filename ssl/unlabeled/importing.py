"""Imports without the garbage collector, which finds nothing among them and looks through all of them to know it."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """To import what stays until Python ends: torch and Lightning are 700,000 objects, left alone till then.

    Python's documentation names ``gc.freeze`` for processes that fork, as a DataLoader does to get its workers: pages
    that no collection writes to are not copied.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


atexit.register(gc.unfreeze)  # else Triton's bindings print what they take for leaks

"""Imports without the garbage collector, which finds nothing among them and looks through all of them to know it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """To import what stays until the process ends: collected neither now, nor later, nor when Python ends.

    Torch and Lightning are more than a million objects. Python's documentation names ``gc.freeze`` for processes that
    fork, as workers of a DataLoader do: pages that no collection writes to are not copied.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

"""Runs compiled modules without ``torch.compile``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def eager_mode() -> Iterator[None]:
    """Turns compiled code and compilation off inside the block: evaluation has other shapes and another mode."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield

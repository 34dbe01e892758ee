"""Sets the arithmetic of a GPU where torch leaves a choice, for the time of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def training_arithmetic(device: torch.device) -> Iterator[None]:
    """Sets it on a GPU, and afterwards sets back what was there: an evaluation in the same process keeps its own.

    - cuDNN tries its algorithms once for each shape of a run, which do not change (``torch.backends.cudnn.benchmark``);
      not where ``torch.use_deterministic_algorithms`` is on.
    - Products of float32 matrices are float32 and not TF32, which keeps 10 bits: the crops and the blur of views are
      products, and losses too. Lightning recommends the opposite.
    - Convolutions of a network in 32-true stay what torch says, TF32 by default
      (``torch.backends.cudnn.allow_tf32``); :func:`describe_precision` says which.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])


def describe_precision(precision: str, device: torch.device) -> str:
    """Returns Lightning's name of the precision, with what else decides about the digits of float32 on a GPU."""
    if device.type != "cuda" or precision != "32-true":
        return precision
    return f"{precision}, convolutions in {'TF32' if torch.backends.cudnn.allow_tf32 else 'float32'}"

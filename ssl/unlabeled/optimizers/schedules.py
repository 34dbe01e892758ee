"""Schedules as pure functions of progress, so that no schedule state has to be saved."""

import math
from collections.abc import Sequence


def warmup_cosine(step: float, warmup_steps: float, total_steps: int, start: float = 0.0, final: float = 0.0) -> float:
    """Returns a factor on the peak value: linear from ``start`` in the warm-up, then half a cosine to ``final``.

    As google-research/simclr (``WarmUpAndCosineDecay``): the first step of a warm-up has factor ``start``, and
    ``final`` would be reached at ``total_steps``. A warm-up longer than the run ends with the run.
    """
    warmup_steps = min(warmup_steps, total_steps)
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    done = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def warmup_seven_sixteenths(step: float, warmup_steps: float, total_steps: int, start: float = 0.0) -> float:
    """Returns a factor on the peak value: linear from ``start`` in the warm-up, then cos(7π/16 · share of the rest).

    As google-research/fixmatch (fixmatch.py), which has no warm-up: the last step has nearly cos(7π/16) = 0.195.
    """
    warmup_steps = min(warmup_steps, total_steps)
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    done = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return math.cos(7 * math.pi / 16 * min(1.0, done))


def warmup_tenths(epoch: float, warmup_epochs: float, milestones: Sequence[float], start: float = 0.0) -> float:
    """Returns a factor on the peak value: linear from ``start`` in the warm-up, then a tenth after each milestone.

    As facebookresearch/moco (``adjust_learning_rate`` without ``--cos``), which counts whole epochs.
    """
    if epoch < warmup_epochs:
        return start + (1 - start) * epoch / warmup_epochs
    return float(0.1 ** sum(epoch >= milestone for milestone in milestones))

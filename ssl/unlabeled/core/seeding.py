"""Derives seeds from several numbers, so that every random draw of a run has a seed for its own purpose."""

import numpy as np
import torch
from torch import Tensor


def derive_seed(*numbers: int) -> int:
    """Returns a seed in [0, 2⁶³) from all the numbers; close inputs give unrelated seeds (numpy's SeedSequence)."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to the device; pinned first, or the host would wait for a GPU."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)

"""Seeds that depend on several numbers: every random draw of a run names what it is for."""

import numpy as np
import torch
from torch import Tensor


def derive_seed(*numbers: int) -> int:
    """A seed in [0, 2⁶³) that depends on every number; close inputs give unrelated seeds (numpy's SeedSequence)."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """What was drawn or listed on the CPU, where it is needed; pinned, or the host would wait for a GPU."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)

"""Seeds that depend on several numbers: every random draw of a run names what it is for."""

import numpy as np


def mix(*numbers: int) -> int:
    """A seed in [0, 2⁶³) that depends on every number; close inputs give unrelated seeds (numpy's SeedSequence)."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))

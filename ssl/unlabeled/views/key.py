"""Defines the key from which all random draws of views are derived."""

from typing import NamedTuple

import torch

from unlabeled.core.seeding import derive_seed


class ViewKey(NamedTuple):
    """Identifies the random draws of one step.

    Parameters are drawn for the whole global batch and each process takes its rows. So the views of an image are the
    same for any number of processes and workers, before and after a resume.
    """

    seed: int
    step: int
    first: int  # position of this process's first image in the global batch
    total: int  # images in the global batch

    def generator(self, view: int) -> torch.Generator:
        """Returns a CPU generator that depends on (seed, step, view) alone."""
        return torch.Generator().manual_seed(derive_seed(self.seed, self.step, view))

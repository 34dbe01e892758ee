"""What a checkpoint file holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class Checkpoint:
    """What a checkpoint file says of itself, and, once :func:`load_backbone` has been through, what was taken."""

    path: Path
    sha256: str
    state_dict: Mapping[str, Tensor]
    config: dict[str, Any] | None  # resolved configuration of the run, in our own checkpoints
    progress: dict[str, int]  # step, total_steps, steps_per_epoch, seed; empty in files from elsewhere
    tensors: Mapping[str, Tensor]  # every tensor in the file, by its whole path
    layout: str  # whose checkpoint it is, e.g. "MoCo v2" or "own run"
    part: str  # which of its encoders the backbone is
    left_out: dict[str, int] = field(default_factory=dict)  # what is not the backbone: number of tensors
    notes: list[str] = field(default_factory=list)  # what a reader of results should know of the loading
    weights: dict[str, Any] = field(default_factory=dict)  # what our run has started from; empty where from nothing

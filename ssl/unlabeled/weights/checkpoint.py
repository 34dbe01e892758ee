"""The contents of a checkpoint file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class Checkpoint:
    """Contents of a checkpoint file; after :func:`load_backbone` also a record of what was loaded from it."""

    path: Path
    sha256: str
    state_dict: Mapping[str, Tensor]
    config: dict[str, Any] | None  # resolved configuration of the run, in our own checkpoints
    progress: dict[str, int]  # step, total_steps, steps_per_epoch, seed; empty in files from elsewhere
    tensors: Mapping[str, Tensor]  # every tensor in the file, by its whole path
    layout: str  # layout of the file, e.g. "MoCo v2" or "own run"
    part: str  # which of its encoders the backbone is
    left_out: dict[str, int] = field(default_factory=dict)  # number of tensors per part that is not the backbone
    notes: list[str] = field(default_factory=list)  # remarks on the loading, for reports
    described: dict[str, Any] = field(default_factory=dict)  # its backbone and views, as its library describes them
    weights: dict[str, Any] = field(default_factory=dict)  # record of what our run started from; empty: random weights
    teacher: dict[str, Any] = field(default_factory=dict)  # record of the network that our run learned from, if any
    product: str = "backbone"  # which network of our run's objective is evaluated: its path among the modules
    uses_labels: bool = False  # whether our run was trained with labels
    classes: list[str] = field(default_factory=list)  # of our run's own classifier, in the order of its outputs

"""Loads weights from checkpoints of many layouts, and exports them to other libraries."""

from unlabeled.core.places import checkpoint_path, folder_of
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.geometry import check_same_backbone
from unlabeled.weights.load import load_backbone, load_objective, read_checkpoint

__all__ = [
    "Checkpoint",
    "check_same_backbone",
    "checkpoint_path",
    "folder_of",
    "load_backbone",
    "load_objective",
    "read_checkpoint",
]

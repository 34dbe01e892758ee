"""Weights in and out."""

from unlabeled.weights.load import Checkpoint, load_backbone, load_objective, read_checkpoint

__all__ = ["Checkpoint", "load_backbone", "load_objective", "read_checkpoint"]

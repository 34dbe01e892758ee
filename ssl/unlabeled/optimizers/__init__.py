"""Optimizers, and the settings with which a run is optimised."""

from unlabeled.optimizers.lars import LARS
from unlabeled.optimizers.optimizer_config import OptimizerConfig, parameter_groups

__all__ = ["LARS", "OptimizerConfig", "parameter_groups"]

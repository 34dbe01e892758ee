"""Optimizers, and the settings with which a run is optimised."""

from unlabeled.optimizers.lars import LARS
from unlabeled.optimizers.muon import Muon
from unlabeled.optimizers.optimizer_config import OptimizerConfig, parameter_groups

__all__ = ["LARS", "Muon", "OptimizerConfig", "parameter_groups"]

"""Optimizers, and the recipe that a run is optimised by."""

from unlabeled.optimizers.lars import LARS
from unlabeled.optimizers.recipe import Recipe, parameter_groups

__all__ = ["LARS", "Recipe", "parameter_groups"]

"""Builds the objects of a run, an evaluation, an export or an analysis from a composed configuration."""

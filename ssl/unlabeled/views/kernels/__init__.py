"""Batched image operations: crop, resample, colour."""

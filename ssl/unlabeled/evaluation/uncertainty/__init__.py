"""Calibration, selective prediction and members of an ensemble."""

"""Handles steps whose loss or gradient is not finite: they are skipped, diagnosed, recorded and replayed."""

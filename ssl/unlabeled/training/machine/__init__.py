"""Fits a run to its machine: memory, arithmetic, compiled code, and what runs beside what."""

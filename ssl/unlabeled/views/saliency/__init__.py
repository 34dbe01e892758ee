"""Computes foreground maps without labels."""

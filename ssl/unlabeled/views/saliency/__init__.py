"""Foreground maps without labels."""

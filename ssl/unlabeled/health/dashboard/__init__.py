"""Serves a local page that shows all runs while they train."""

"""A local page that shows all runs while they train."""

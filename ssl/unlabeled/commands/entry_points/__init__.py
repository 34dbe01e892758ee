"""The commands as a shell calls them, and as Python does."""

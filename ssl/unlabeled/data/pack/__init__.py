"""Writes a data set once as tar shards of images that are decoded and resized, for ``data=shards``."""

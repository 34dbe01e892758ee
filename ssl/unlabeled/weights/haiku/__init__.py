"""Checkpoints of JAX and Haiku programs: reading their arrays as data, and their names."""

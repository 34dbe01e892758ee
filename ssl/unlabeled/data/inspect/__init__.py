"""Checks every image of a data set: sizes, damaged files, duplicates, speed of decoding."""

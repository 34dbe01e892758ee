"""Writes the features of images, labelled or not, as a table that other programs read."""

"""Classifiers that an evaluation has fitted: kept in files, read again, and what they say of other images."""

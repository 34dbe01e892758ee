"""Measures features without labels: rank, spectrum, CKA, invariance, attention."""

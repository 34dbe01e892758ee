"""Semantic segmentation with dense features: a linear head, neighbours of patches, the foreground."""

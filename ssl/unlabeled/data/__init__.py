"""Turns a data set into batches: splits, order of samples, decoding, loaders, labels."""

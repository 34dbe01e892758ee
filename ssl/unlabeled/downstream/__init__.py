"""What frozen features are worth on other data sets: transfer by linear probes, k-NN and few images of a class."""

"""The probes: k-NN, linear, few labels, k-means, PAWS-NN, dropout, ensembles."""

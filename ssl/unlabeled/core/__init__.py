"""Functions for all packages: seeds, atomic writing, configurations as plain values, software versions."""

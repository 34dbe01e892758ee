"""What every room may use: seeds, files written whole, configurations as plain values, versions of the software."""

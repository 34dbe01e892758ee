"""Building blocks of several methods: heads, moving averages, contrast, precision, bounds of metrics."""

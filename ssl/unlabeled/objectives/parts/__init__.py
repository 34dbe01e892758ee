"""What several methods share: heads, moving averages, contrast, precision, bounds of metrics."""

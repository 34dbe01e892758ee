"""A page to look through images without labels: a map, clusters, neighbours, outliers, duplicates, what to label."""

"""Which images to look at and to label: neighbours, clusters, outliers, near duplicates, typical images."""

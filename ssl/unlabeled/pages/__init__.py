"""HTML, plots, feature maps and their style, shared by all pages and pictures."""

"""HTML, plots, maps of features and their look, shared by all pages and pictures."""

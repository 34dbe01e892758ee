"""Makes a page that shows the views of a pipeline before training."""

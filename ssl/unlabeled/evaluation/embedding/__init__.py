"""Features of images, without labels or with them, as a table that other programs read."""

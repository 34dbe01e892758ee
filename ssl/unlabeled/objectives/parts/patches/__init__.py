"""Which patches of an image a method takes, and which it predicts."""

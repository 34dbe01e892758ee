"""``unlabeled train``, and what it picks before and says at the end."""

"""``unlabeled evaluate`` and ``unlabeled compare``."""

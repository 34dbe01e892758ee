"""``unlabeled evaluate``, ``unlabeled embed`` and ``unlabeled compare``."""

"""``unlabeled doctor`` and ``unlabeled new``: a machine and own code made ready."""

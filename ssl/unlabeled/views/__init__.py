"""Makes the augmented views of a batch on its device."""

"""``unlabeled predict`` and ``unlabeled finetune``."""

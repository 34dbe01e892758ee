"""Published evaluation recipes that train: linear, attentive and fine-tuning."""

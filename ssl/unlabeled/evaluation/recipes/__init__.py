"""Published evaluation recipes that train on images: linear, attentive and fine-tuning."""

"""Self-supervised pretraining of image backbones."""

"""Object detection and instance segmentation with a pretrained backbone: how good its features are for places."""

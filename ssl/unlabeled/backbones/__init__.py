"""Networks that turn images into features: ResNet, ViT, RegNet, and those of timm and torchvision."""

"""A linear classifier of dense features: BatchNorm and a 1 × 1 convolution, as DINOv3 judges frozen backbones.

Source: facebookresearch/dinov3, dinov3/eval/segmentation (linear head, ADE20K).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlabeled.objective import Backbone


class LinearSegmenter(nn.Module):
    """Maps images [B, 3, h, w], normalised, to logits [B, classes, h, w]; the backbone is frozen.

    Args:
        backbone: has features of the kind ``map``; stays in eval mode and gets no gradient.
        width: channels of its map.
        classes: of the logits.
    """

    def __init__(self, backbone: Backbone, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "LinearSegmenter":
        """Sets the mode of the head alone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            dense = self.backbone.features(images, ["map"])["map"].float()
        logits: Tensor = self.classifier(self.norm(dense))
        return F.interpolate(logits, images.shape[2:], mode="bilinear")

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Makes AdamW for the head."""
        head = [*self.norm.parameters(), *self.classifier.parameters()]
        return torch.optim.AdamW(head, lr=lr, weight_decay=weight_decay)


def map_width(backbone: Backbone, size: int) -> int:
    """Returns the number of channels of a backbone's map. Raises UserError where it has none."""
    backbone.check_kinds(["map"])
    device = next(backbone.parameters()).device
    with torch.no_grad():
        image = torch.zeros(1, backbone.channels, size, size, device=device)
        return int(backbone.eval().features(image, ["map"])["map"].shape[1])

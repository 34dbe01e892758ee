"""Segments by four maps made of one: the simple pyramid of ViTDet under the semantic head of Panoptic FPN.

Source of the head: Kirillov et al. 2019 (arXiv:1901.02446, section 3.1).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from unlabeled.downstream.detection.networks.vitdet import SimplePyramid

LEVELS = ("p2", "p3", "p4", "p5")  # 4, 2, 1 and 1/2 times as fine as the given map
CHANNELS = 256  # of each
HEAD_CHANNELS = 128
GROUPS = 32  # of GroupNorm


class SemanticHead(nn.Module):
    """Maps a pyramid to logits [B, classes, h, w] at the size of its finest map.

    Each coarser map is convolved and doubled until it has the finest's size; all are added.

    Args:
        levels: of the pyramid, the finest first.
        channels: of its maps.
        classes: of the logits.
    """

    def __init__(self, levels: int, channels: int, classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(_convolution(channels if step == 0 else HEAD_CHANNELS) for step in range(max(1, level)))
            for level in range(levels)
        )
        self.classifier = nn.Conv2d(HEAD_CHANNELS, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        sizes = [each.shape[2:] for each in maps]
        total: Tensor | None = None
        for level, branch in enumerate(self.branches):
            x = maps[level]
            assert isinstance(branch, nn.ModuleList)
            for step, convolution in enumerate(branch):
                x = convolution(x)
                if level:
                    x = F.interpolate(x, sizes[level - 1 - step], mode="bilinear")
            total = x if total is None else total + x
        logits: Tensor = self.classifier(total)
        return logits


def _convolution(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, HEAD_CHANNELS, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, HEAD_CHANNELS), nn.ReLU()
    )


class PyramidHead(nn.Module):
    """Maps a ViT's map [B, width, h, w], at least 2 × 2, to logits [B, classes, 4·h, 4·w]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.pyramid = SimplePyramid(width, CHANNELS)
        self.head = SemanticHead(len(LEVELS), CHANNELS, classes)

    def forward(self, dense: Tensor) -> Tensor:
        maps = self.pyramid(dense)
        logits: Tensor = self.head([maps[level] for level in LEVELS])
        return logits

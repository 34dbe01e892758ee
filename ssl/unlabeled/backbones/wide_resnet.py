"""Wide ResNets for images of 32 pixels: WRN-28-2 and its kin, with pre-activation blocks.

Zagoruyko and Komodakis 2016, arXiv:1605.07146; LeakyReLU and the activated first shortcut are those of FixMatch
(github.com/google-research/fixmatch, libml/models.py). Tensor names are those of xternalz/WideResNet-pytorch, which the
PyTorch codes of FixMatch and PAWS follow.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from unlabeled.backbones.recomputation import recompute
from unlabeled.backbones.resnet import features_from_maps
from unlabeled.core.ranges import Channels, Layers, Share
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

STEM_WIDTH = 16


class WideResNet(Backbone):
    """Convolutional features, averaged over the image.

    Args:
        depth: 6 n + 4 for n blocks in each of three groups: 28 has four.
        width: k, which multiplies the channels 16, 32 and 64 of the groups.
        slope: of LeakyReLU below 0; 0 is ReLU.
        norm_momentum: share of the newest batch in BatchNorm's statistics, as torch counts it.
        activate_first_shortcut: whether the shortcut of the first block starts behind BatchNorm and activation.
        gradient_checkpointing: see :func:`~unlabeled.backbones.recomputation.recompute`.
        channels: of the images.

    Shape: images [B, channels, h, w] → features [B, 64 k].

    Raises:
        UserError: a depth that is not 6 n + 4.
    """

    def __init__(
        self,
        depth: Layers,
        width: Annotated[int, Interval(ge=1, le=64)],
        slope: Share,
        norm_momentum: Annotated[float, Interval(gt=0, le=1)],
        activate_first_shortcut: bool = True,
        gradient_checkpointing: bool = False,
        channels: Channels = 3,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"backbone.depth={depth} must be 6 n + 4, such as 16, 22, 28 or 40")
        blocks, widths = (depth - 4) // 6, [STEM_WIDTH, *(STEM_WIDTH * width * 2**group for group in range(3))]
        self.channels, self.slope, self.num_features = channels, slope, widths[-1]
        self.conv1 = nn.Conv2d(channels, STEM_WIDTH, 3, padding=1, bias=False)
        self.block1 = _Group(blocks, widths[0], widths[1], 1, slope, activate_first_shortcut)
        self.block2 = _Group(blocks, widths[1], widths[2], 2, slope, False)
        self.block3 = _Group(blocks, widths[2], widths[3], 2, slope, False)
        self.bn1 = nn.BatchNorm2d(widths[3])
        _initialise(self, norm_momentum)
        if gradient_checkpointing:
            recompute(self.shards())

    kinds = ("last", "last4", "tokens", "map")

    def shards(self) -> list[nn.Module]:
        return [block for group in (self.block1, self.block2, self.block3) for block in group.layer]

    def forward(self, images: Tensor) -> Tensor:
        return self.stage_maps(images)[-1].mean(dim=(2, 3))

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        self.check_kinds(kinds)
        return features_from_maps(self.stage_maps(images), kinds)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Returns the outputs of the groups; that of the last is normalised and activated."""
        first = self.block1(self.conv1(images))
        second = self.block2(first)
        third = self.block3(second)
        return [first, second, F.leaky_relu(self.bn1(third), self.slope)]


class _Group(nn.Module):
    """Blocks of one width; the first has the stride."""

    def __init__(
        self, blocks: int, in_width: int, width: int, stride: int, slope: float, activate_shortcut: bool
    ) -> None:
        super().__init__()
        first = _Block(in_width, width, stride, slope, activate_shortcut)
        self.layer = nn.Sequential(first, *(_Block(width, width, 1, slope, False) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class _Block(nn.Module):
    """BatchNorm, activation, convolution, twice; beside it the input, or a 1×1 convolution of it."""

    def __init__(self, in_width: int, width: int, stride: int, slope: float, activate_shortcut: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = in_width == width and stride == 1
        self.convShortcut = None if same else nn.Conv2d(in_width, width, 1, stride, bias=False)
        self.slope, self.activate_shortcut = slope, activate_shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = F.leaky_relu(self.bn1(x), self.slope)
        out: Tensor = self.conv2(F.leaky_relu(self.bn2(self.conv1(activated)), self.slope))
        beside = activated if self.activate_shortcut else x
        return out + (beside if self.convShortcut is None else self.convShortcut(beside))


def _initialise(network: nn.Module, momentum: float) -> None:
    """Draws kernels from N(0, 2 / (k² · output channels)), as libml/models.py does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum

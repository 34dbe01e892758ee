"""ResNets of any depth and width, for large and for small images.

He et al. 2015, arXiv:1512.03385, in torchvision's form (stride in the 3×3 convolution) and with torchvision's names for
every tensor, so that checkpoints load in either direction.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, Self

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from unlabeled.backbones.freezing import freeze_blocks, keep_still
from unlabeled.backbones.padding import Padding, pad_at_end
from unlabeled.backbones.recomputation import recompute
from unlabeled.core.ranges import Channels, Count, Layers
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

_DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}


class ResNet(Backbone):
    """Convolutional features, averaged over the image.

    Args:
        depth: 10, 18, 34, 50, 101, 152 or 200.
        width: multiplies the channels of every stage, 64, 128, 256 and 512 at 1.
        stem: ``imagenet`` is 7×7 with stride 2 and a max-pool; ``cifar`` is 3×3 with stride 1 and padding 1, no
            max-pool, for images up to about 64 pixels (arXiv:2002.05709, B.9).
        zero_init_residual: the last BatchNorm of each block starts at zero, so that a block starts as the identity.
        gradient_checkpointing: see :func:`~unlabeled.backbones.recomputation.recompute`.
        channels: of the images.
        freeze: how many blocks, with the stem before them, are not trained and keep their BatchNorms' statistics.
        padding: where a stride is 2, ``both`` adds as many pixels on every side, as torchvision; ``end`` adds the odd
            one below and on the right, as TensorFlow and Haiku (``SAME``): BYOL's checkpoints need it.
        pool: pixels of a max-pool behind the stem, and its stride, in place of the stem's own; 1: none; None: the
            stem's. ``cifar`` with 2 halves the resolution of all stages: less than half of the time.

    Shape: images [B, channels, h, w] → features [B, num_features].

    Raises:
        UserError: a depth, stem, width or padding that is not allowed; images too small for ``pool``.
    """

    def __init__(
        self,
        depth: Layers,
        width: Annotated[float, Interval(ge=1 / 64, le=64)],
        stem: Literal["imagenet", "cifar"],
        zero_init_residual: bool = False,
        gradient_checkpointing: bool = False,
        channels: Channels = 3,
        freeze: Count | None = None,
        padding: Padding = "both",
        pool: Count | None = None,
    ) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            raise UserError(f"backbone.depth={depth} is not one of {', '.join(map(str, _DEPTHS))}")
        if stem not in ("imagenet", "cifar"):
            raise UserError(f"backbone.stem={stem} is neither imagenet nor cifar")
        if padding not in ("both", "end"):
            raise UserError(f"backbone.padding={padding} is neither both nor end")
        block, depths = _DEPTHS[depth]
        widths = [int(64 * width * 2**stage) for stage in range(4)]
        if widths[0] < 1:
            raise UserError(f"backbone.width={width} leaves no channels: it must be at least 1/64")
        self.channels = channels
        self.conv1 = nn.Conv2d(channels, widths[0], *((7, 2, 3) if stem == "imagenet" else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _max_pool(stem, pool)
        outs = [widths[0], *(stage_width * block.expansion for stage_width in widths)]
        stage = partial(_stage, block)
        self.layer1 = stage(outs[0], widths[0], depths[0], stride=1)
        self.layer2 = stage(outs[1], widths[1], depths[1], stride=2)
        self.layer3 = stage(outs[2], widths[2], depths[2], stride=2)
        self.layer4 = stage(outs[3], widths[3], depths[3], stride=2)
        self.num_features, self.padding, self.pool = outs[4], padding, pool
        if padding == "end":
            pad_at_end(self)
        _initialise(self, zero_init_residual)
        if gradient_checkpointing:
            recompute(self.shards())
        self.freeze = freeze
        freeze_blocks([self.conv1, self.bn1], self.shards(), freeze)

    def train(self, mode: bool = True) -> Self:
        """As every module, but for what is frozen."""
        super().train(mode)
        keep_still([self.conv1, self.bn1, *self.shards()[: self.freeze]] if self.freeze else [])
        return self

    def shards(self) -> list[nn.Module]:
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]

    kinds = ("last", "last4", "tokens", "map")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(x.mean(dim=(2, 3)), 1)

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        self.check_kinds(kinds)
        return features_from_maps(self.stage_maps(images), kinds)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return [x := stage(x) for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]


def features_from_maps(maps: Sequence[Tensor], kinds: Sequence[str]) -> dict[str, Tensor]:
    """Returns features by kind from the outputs of a convolutional network's stages, [B, C, h, w] each, in order."""
    made: dict[str, Callable[[], Tensor]] = {
        "last": lambda: maps[-1].mean(dim=(2, 3)),
        "last4": lambda: torch.cat([each.mean(dim=(2, 3)) for each in maps[-4:]], 1),
        "tokens": lambda: maps[-1].flatten(2).transpose(1, 2),
        "map": lambda: maps[-1],
    }
    return {kind: made[kind]() for kind in kinds}


def _max_pool(stem: str, pool: int | None) -> nn.Module:
    if stem == "imagenet" and pool is None:
        return nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Identity() if pool is None or pool == 1 else _CheckedMaxPool(pool)


class _CheckedMaxPool(nn.MaxPool2d):
    """A max-pool that names its key where the maps are smaller than it."""

    def forward(self, maps: Tensor) -> Tensor:
        (height, width), pool = maps.shape[-2:], self.kernel_size
        assert isinstance(pool, int)
        if min(height, width) < pool:
            raise UserError(
                f"backbone.pool={pool}: the maps behind the stem have {height} × {width} pixels: give a"
                " smaller backbone.pool, or a larger views.size"
            )
        pooled: Tensor = super().forward(maps)
        return pooled


def _stage(
    block: type[BasicBlock | Bottleneck], in_channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    out_channels = width * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, width, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, width) for _ in range(depth - 1)))


def _initialise(network: nn.Module, zero_init_residual: bool) -> None:
    """Uses He's initialisation with fan-out, as torchvision does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.zeros_(last.weight)

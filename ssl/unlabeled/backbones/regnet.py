"""RegNetX and RegNetY by parameters: the networks of Radosavovic et al. 2020, arXiv:2003.13678, up to 10 B weights.

Blocks and tensor names are torchvision's, so that checkpoints load in either direction. Names such as ``RegNetY-256GF``
mean different networks in different places: build by parameters, and compare the number of weights.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from annotated_types import Interval
from torch import Tensor, nn
from torchvision.models.regnet import AnyStage, ResBottleneckBlock, SimpleStemIN

from unlabeled.backbones.recomputation import recompute
from unlabeled.backbones.resnet import features_from_maps
from unlabeled.core.ranges import Channels, Layers, NotNegative, SomeShare
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

STEM_WIDTH = 32


class Stage(NamedTuple):
    """Blocks of one width."""

    width: int
    depth: int
    group_width: int


class RegNetY(Backbone):
    """Convolutional features, averaged over the image.

    Args:
        depth: number of blocks.
        w_0, w_a, w_m: first width, slope and step of the quantised linear widths (arXiv:2003.13678, section 3.3).
        group_width: channels per group of the 3×3 convolutions.
        se_ratio: width of the squeeze-and-excitation, relative to the block's input; 0.25 in every RegNetY; None: there
            is none, as in every RegNetX.
        rounding: how widths are rounded to multiples of the group width, see :func:`stages`.
        gradient_checkpointing: see :func:`~unlabeled.backbones.recomputation.recompute`.
        channels: of the images.

    Shape: images [B, channels, h, w] → features [B, num_features].

    Raises:
        UserError: parameters that describe no network.
    """

    def __init__(
        self,
        depth: Layers,
        w_0: Channels,
        w_a: NotNegative,
        w_m: Annotated[float, Interval(gt=1, le=100)],
        group_width: Channels,
        se_ratio: SomeShare | None = 0.25,
        rounding: Literal["nearest", "torchvision"] = "nearest",
        gradient_checkpointing: bool = False,
        channels: Channels = 3,
    ) -> None:
        super().__init__()
        plan = stages(depth, w_0, w_a, w_m, group_width, rounding)
        widths = [STEM_WIDTH, *(stage.width for stage in plan)]
        self.channels = channels
        self.stem = SimpleStemIN(channels, STEM_WIDTH, nn.BatchNorm2d, nn.ReLU)
        self.trunk_output = nn.Sequential(
            OrderedDict(
                (f"block{number}", _stage(number, in_width, stage, se_ratio))
                for number, (in_width, stage) in enumerate(zip(widths, plan, strict=False), start=1)
            )
        )
        self.num_features = widths[-1]
        _initialise(self)
        if gradient_checkpointing:
            recompute(self.shards())

    def shards(self) -> list[nn.Module]:
        return [block for stage in self.trunk_output.children() for block in stage.children()]

    kinds = ("last", "last4", "tokens", "map")

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk_output(self.stem(images)).mean(dim=(2, 3))
        return features

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        self.check_kinds(kinds)
        return features_from_maps(self.stage_maps(images), kinds)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        return [x := stage(x) for stage in self.trunk_output]


def stages(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int, rounding: Literal["nearest", "torchvision"]
) -> list[Stage]:
    """Returns quantised linear widths (arXiv:2003.13678, eq. 2 to 4), rounded to multiples of the group width.

    Args:
        rounding: ``nearest`` is the paper's (facebookresearch/pycls), also of ClassyVision, VISSL and timm;
            ``torchvision`` never falls below 90 % of the width, which changes RegNetX-400MF, RegNetY-800MF and -8GF.

    Returns:
        One :class:`Stage` per distinct width.
    """
    if depth < 1 or w_0 < 8 or w_0 % 8 or w_a < 0 or w_m <= 1 or group_width < 1:
        raise UserError(
            f"backbone.w_0={w_0} must be a multiple of 8, w_a={w_a} not below 0, w_m={w_m} above 1, "
            f"depth={depth} and group_width={group_width} at least 1"
        )
    if rounding not in ("nearest", "torchvision"):
        raise UserError(f"backbone.rounding={rounding} is neither nearest nor torchvision")
    steps = [round(math.log((w_0 + w_a * block) / w_0) / math.log(w_m)) for block in range(depth)]
    widths = [8 * round(w_0 * w_m**step / 8) for step in steps]
    found = []
    for width, blocks in itertools.groupby(widths):
        group = min(group_width, width)
        found.append(Stage(_divisible(width, group, rounding), len(list(blocks)), group))
    return found


def _divisible(width: int, group: int, rounding: str) -> int:
    if rounding == "nearest":
        return round(width / group) * group
    rounded = int(width + group / 2) // group * group
    return rounded + group if rounded < 0.9 * width else rounded


def _stage(number: int, in_width: int, stage: Stage, se_ratio: float | None) -> AnyStage:
    return AnyStage(
        in_width,
        stage.width,
        stride=2,
        depth=stage.depth,
        block_constructor=ResBottleneckBlock,
        norm_layer=nn.BatchNorm2d,
        activation_layer=nn.ReLU,
        group_width=stage.group_width,
        bottleneck_multiplier=1.0,
        se_ratio=se_ratio,
        stage_index=number,
    )


def _initialise(network: nn.Module) -> None:
    """Uses He's initialisation with a fan-out that ignores groups, as pycls and torchvision do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

"""Maps of several resolutions for a detector, from the stages of a convolutional network.

Feature pyramid networks, Lin et al. 2016, arXiv:1612.03144.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from unlabeled.backbones.freezing import keep_still
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

MOST_LEVELS = 4  # p2 to p5 of a network with strides 4 to 32
PROBE = 64  # height and width of the image that strides are measured with, pixels
REMEDY = "give a ResNet, a RegNet or a convolutional network of timm, or a ViT of backbone=vit_… with neck=vitdet"

Norm = Callable[[int], nn.Module]


class Level(NamedTuple):
    """A map that a stage of a network makes."""

    place: int  # among the network's maps
    stride: int  # pixels of the image from cell to cell
    channels: int


class FeaturePyramid(nn.Module):
    """Maps images [B, channels, h, w] to maps of equal width by name, the finest first.

    ``stride4`` to ``stride32`` for a ResNet, then ``pool``: every second cell of the coarsest, as p6 in the paper.

    Args:
        backbone: has stages, see :meth:`Backbone.stage_maps`; its tensors become part of the module.
        width: channels of each map.
        norm: what follows each convolution of the pyramid; None: nothing.
        frozen: whether the backbone's BatchNorms keep statistics, scales and shifts.

    Raises:
        UserError: stages of fewer than two resolutions, or a network for images of one size.
    """

    def __init__(self, backbone: Backbone, width: int, norm: Norm | None, frozen: bool) -> None:
        super().__init__()
        self.levels = stage_levels(backbone)
        self.body = backbone
        self.still = freeze_batchnorms(backbone) if frozen else []
        self.fpn = FeaturePyramidNetwork([level.channels for level in self.levels], width, LastLevelMaxPool(), norm)
        self.out_channels = width
        # the maps that regions are cut from, and the strides of all that anchors lie on
        self.pooled: dict[str, float] = {_name(level): level.stride for level in self.levels}
        self.strides: list[float] = [*self.pooled.values(), 2 * self.levels[-1].stride]

    def train(self, mode: bool = True) -> Self:
        """As every module, but for what is frozen."""
        super().train(mode)
        keep_still(self.still)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body.stage_maps(images)
        made: dict[str, Tensor] = self.fpn(OrderedDict((_name(level), maps[level.place]) for level in self.levels))
        return made


def stage_levels(backbone: Backbone) -> list[Level]:
    """Returns the last map of each stride, at most the four coarsest, the finest first; the network is not changed.

    Raises:
        UserError: as :class:`FeaturePyramid`.
    """
    name = type(backbone).__name__
    if type(backbone).stage_maps is Backbone.stage_maps:
        raise UserError(f"neck=fpn: {name} has no stages of falling resolution: {REMEDY}")
    if backbone.image_size is not None and backbone.size_multiple is None:
        raise UserError(
            f"neck=fpn: {name} takes images of {backbone.image_size} pixels alone, and a detector's have many: {REMEDY}"
        )
    last = {level.stride: level for level in _measured(backbone)}
    if len(last) < 2:
        raise UserError(f"neck=fpn: all maps of {name} have one resolution: {REMEDY}")
    return [last[stride] for stride in sorted(last)][-MOST_LEVELS:]


def freeze_batchnorms(network: nn.Module) -> list[nn.Module]:
    """Freezes scales and shifts of every BatchNorm inside; returns the layers, for :func:`keep_still`."""
    norms: list[nn.Module] = [each for each in network.modules() if isinstance(each, _BatchNorm)]
    for norm in norms:
        norm.requires_grad_(False)
    keep_still(norms)
    return norms


@torch.no_grad()
def _measured(backbone: Backbone) -> list[Level]:
    first = next(backbone.parameters())
    image = torch.zeros(1, backbone.channels, PROBE, PROBE, dtype=first.dtype, device=first.device)
    modes = [(module, module.training) for module in backbone.modules()]
    maps = backbone.eval().stage_maps(image)
    for module, mode in modes:
        module.training = mode
    return [Level(place, PROBE // each.shape[-1], each.shape[1]) for place, each in enumerate(maps)]


def _name(level: Level) -> str:
    return f"stride{level.stride}"

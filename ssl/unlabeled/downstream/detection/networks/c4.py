"""Faster R-CNN without a pyramid: maps of a ResNet's third stage, and its fourth as the head of each region.

He et al. 2015, arXiv:1512.03385, and Mask R-CNN, arXiv:1703.06870, section 3 (C4). MoCo's table of detection is made
with it, with one more BatchNorm behind the fourth stage (facebookresearch/moco, detection/train_net.py).
"""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from unlabeled.backbones.freezing import keep_still
from unlabeled.backbones.resnet import ResNet
from unlabeled.downstream.detection.networks.stages import freeze_batchnorms, stage_levels
from unlabeled.errors import UserError
from unlabeled.objective import Backbone


class C4(nn.Module):
    """Maps images [B, channels, h, w] to the output of a ResNet's third stage, under the name ``c4``.

    Args:
        backbone: its tensors become part of the module; :meth:`take_last_stage` takes the fourth stage out.
        frozen: whether BatchNorms keep statistics, scales and shifts.

    Raises:
        UserError: not a ResNet.
    """

    def __init__(self, backbone: Backbone, frozen: bool) -> None:
        super().__init__()
        if not isinstance(backbone, ResNet):
            raise UserError(
                f"neck=c4: {type(backbone).__name__} is no ResNet, whose last stage is the head: give neck=fpn"
            )
        level, last = stage_levels(backbone)[-2:]
        self.still = freeze_batchnorms(backbone) if frozen else []
        self.frozen, self.last_channels = frozen, last.channels
        self.body = backbone
        self.out_channels = level.channels
        self.pooled: dict[str, float] = {"c4": level.stride}
        self.strides: list[float] = [level.stride]

    def take_last_stage(self) -> nn.Module:
        """Returns the fourth stage and leaves nothing in its place; to be called once."""
        taken: nn.Module = self.body.layer4
        self.body.layer4 = nn.Sequential()
        return taken

    def train(self, mode: bool = True) -> Self:
        """As every module, but for what is frozen."""
        super().train(mode)
        keep_still(self.still)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c4": self.body.stage_maps(images)[2]}


class LastStage(nn.Module):
    """Maps regions [n, C, 14, 14] by the fourth stage to [n, C', 7, 7].

    Args:
        neck: whose fourth stage it takes.
        norm: what follows the stage; None: nothing.
    """

    def __init__(self, neck: C4, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.stage = neck.take_last_stage()
        self.norm = nn.Identity() if norm is None else norm(neck.last_channels)
        self.still = freeze_batchnorms(self.stage) if neck.frozen else []

    def train(self, mode: bool = True) -> Self:
        """As every module, but for what is frozen."""
        super().train(mode)
        keep_still(self.still)
        return self

    def forward(self, regions: Tensor) -> Tensor:
        made: Tensor = self.norm(self.stage(regions))
        return made


class RegionMeans(nn.Module):
    """The box head of C4: maps regions to the means of what the last stage makes of them, [n, C']."""

    def __init__(self, last: LastStage) -> None:
        super().__init__()
        self.last = last

    def forward(self, regions: Tensor) -> Tensor:
        means: Tensor = self.last(regions).mean(dim=(2, 3))
        return means


class SharedStage(nn.Module):
    """The mask head of C4: the box head's own last stage, which has its only place in a state dict there."""

    def __init__(self, last: LastStage) -> None:
        super().__init__()
        self._shared = (last,)  # in a tuple: not among the modules

    def forward(self, regions: Tensor) -> Tensor:
        made: Tensor = self._shared[0](regions)
        return made

"""The parts of Faster and Mask R-CNN behind the maps: proposals, boxes and masks of regions.

torchvision's modules (torchvision.models.detection), with what lets them run under autocast: boxes in bfloat16 would be
wrong by up to 4 pixels at 1024, and torchvision makes anchors and boxes of the type that a layer returned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from unlabeled.downstream.detection.networks.c4 import C4, LastStage, RegionMeans, SharedStage
from unlabeled.downstream.detection.networks.stages import FeaturePyramid
from unlabeled.downstream.detection.networks.vitdet import ViTDet, norm2d

Neck = FeaturePyramid | C4 | ViTDet

HeadNorm = Literal["none", "batch", "layer"]
NORMS: dict[HeadNorm, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm2d,
    "layer": norm2d,  # over the channels of each cell
}
RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors (arXiv:1506.01497)


@dataclass(frozen=True)
class Heads:
    """The form of the heads; the defaults are those of Mask R-CNN with FPN (arXiv:1703.06870, 1612.03144)."""

    width: int = 256  # channels of the pyramid's maps and of the convolutions behind them
    hidden: int = 1024  # of the linear layers of the box head
    norm: HeadNorm = "none"
    box_convolutions: int = 0  # before the box head's linear layers: one layer with them, two without
    rpn_convolutions: int = 1
    anchor: float = 8.0  # side of a level's anchors in strides of the level: 32 pixels at stride 4
    proposals: int = 2000  # of the region proposal network while it is trained, before and after suppression
    regions: int = 512  # of an image that the box head is trained with


VITDET = Heads(norm="layer", box_convolutions=4, rpn_convolutions=2)  # arXiv:2203.16527, appendix A.2


class ProposalHead(RPNHead):  # type: ignore[misc]
    """torchvision's, which returns float32 under autocast too."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, boxes = super().forward(x)
        return [each.float() for each in scores], [each.float() for each in boxes]


class BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """torchvision's, likewise."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = super().forward(x)
        return scores.float(), boxes.float()


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's anchors at the strides that are given, in float32 at least.

    torchvision takes size // cells as the stride, which is wrong where p5 has an odd number of cells.

    Args:
        strides: of the levels, pixels.
        heads: three ratios of one size on each level; on a single level the five sizes of a pyramid.
    """

    def __init__(self, strides: Sequence[float], heads: Heads) -> None:
        sides = [(heads.anchor * stride,) for stride in strides]
        if len(strides) == 1:
            sides = [tuple(heads.anchor * strides[0] * 2**power for power in range(-2, 3))]
        super().__init__(tuple(sides), (RATIOS,) * len(sides))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Returns the anchors of all levels [n, 4] for each image."""
        like = feature_maps[0]
        self.set_cell_anchors(torch.promote_types(like.dtype, torch.float32), like.device)
        cells = [each.shape[-2:] for each in feature_maps]
        every = torch.cat(self.grid_anchors(cells, [(stride, stride) for stride in self.strides]))
        return [every for _ in image_list.image_sizes]


def region_pool(strides: Mapping[str, float], size: int) -> MultiScaleRoIAlign:
    """Returns what cuts regions of ``size`` × ``size`` cells from the level that fits them (arXiv:1612.03144, eq. 1).

    A square of 14 strides of the third level is cut from that level: 224 pixels at stride 16, as in the paper.
    Scales are set here: torchvision guesses them from the first batch, wrongly for small images with much padding.

    Args:
        strides: of the maps by their names, the finest first, each twice the one before.
        size: 7 for boxes, 14 for masks.
    """
    pool = MultiScaleRoIAlign(list(strides), size, sampling_ratio=2)
    steps = list(strides.values())
    pool.scales = [1 / step for step in steps]
    pool.map_levels = LevelMapper(0, len(steps) - 1, canonical_scale=14 * 4 * steps[0], canonical_level=2)
    return pool


def box_parts(neck: Neck, heads: Heads, classes: int) -> dict[str, nn.Module]:
    """Returns the arguments of torchvision's FasterRCNN for the box head; the background is not among ``classes``."""
    norm = NORMS[heads.norm]
    if isinstance(neck, C4):
        head: nn.Module = RegionMeans(LastStage(neck, norm))
        wide = neck.last_channels
    elif heads.box_convolutions:
        convolutions = [heads.width] * heads.box_convolutions
        head, wide = FastRCNNConvFCHead((heads.width, 7, 7), convolutions, [heads.hidden], norm), heads.hidden
    else:
        head, wide = TwoMLPHead(heads.width * 7 * 7, heads.hidden), heads.hidden
    size = 14 if isinstance(neck, C4) else 7
    return {
        "box_roi_pool": region_pool(neck.pooled, size),
        "box_head": head,
        "box_predictor": BoxPredictor(wide, classes + 1),
    }


def mask_parts(neck: Neck, box_head: nn.Module, heads: Heads, classes: int) -> dict[str, nn.Module]:
    """Returns the further arguments of torchvision's MaskRCNN.

    BatchNorm is left out: a batch without an object has no region for it.
    """
    pool = region_pool(neck.pooled, 14)
    if isinstance(neck, C4) and isinstance(box_head, RegionMeans):
        head: nn.Module = SharedStage(box_head.last)
        wide = neck.last_channels
    else:
        norm = NORMS[heads.norm] if heads.norm == "layer" else None
        head, wide = MaskRCNNHeads(heads.width, [heads.width] * 4, 1, norm), heads.width
    return {
        "mask_roi_pool": pool,
        "mask_head": head,
        "mask_predictor": MaskRCNNPredictor(wide, heads.width, classes + 1),
    }

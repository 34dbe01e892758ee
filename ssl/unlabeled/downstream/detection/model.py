"""A detector of boxes, or of boxes and masks: a pretrained backbone in torchvision's Faster or Mask R-CNN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from unlabeled.downstream.detection.c4 import C4
from unlabeled.downstream.detection.heads import (
    NORMS,
    VITDET,
    Anchors,
    Heads,
    Neck,
    ProposalHead,
    box_parts,
    mask_parts,
)
from unlabeled.downstream.detection.stages import FeaturePyramid
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

NeckName = Literal["vitdet", "fpn", "c4"]
BatchNorms = Literal["trained", "frozen"]
C4_CANDIDATES = {"rpn_pre_nms_top_n_train": 12_000, "rpn_pre_nms_top_n_test": 6_000}  # detectron2's, for one level


@dataclass(frozen=True)
class Inputs:
    """How images in [0, 1] become what the backbone takes."""

    shorter: Sequence[int] = (800,)  # side in pixels, drawn in training; the last one in evaluation (arXiv:1612.03144)
    longest: int = 1333  # pixels; the shorter side shrinks where the longer would be above
    resize_training: bool = True  # False: images are trained with as they come, such as crops of large-scale jitter
    square: int | None = None  # each image is padded with zeros below and on the right to this side, as ViTDet's
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)


def detector(
    backbone: Backbone,
    *,
    neck: NeckName,
    classes: int,
    masks: bool,
    inputs: Inputs = Inputs(),
    heads: Heads | None = None,
    batchnorm: BatchNorms = "trained",
) -> nn.Module:
    """Returns torchvision's Faster R-CNN, or Mask R-CNN with ``masks``, on a backbone, which becomes part of it.

    In training it maps a list of images [3, h, w] in [0, 1] and a list of targets (``boxes`` [n, 4] as x1 y1 x2 y2 in
    pixels, ``labels`` int64 [n] from 1, ``masks`` uint8 [n, h, w]) to a dict of losses; an image may have no object.
    In evaluation it maps images to a list of dicts: ``boxes`` [m, 4], ``labels`` [m], ``scores`` [m], best first, and
    ``masks`` [m, 1, h, w], probabilities.

    Args:
        backbone: a ViT for ``vitdet``, a network with stages for ``fpn``, a ResNet for ``c4``.
        neck: how the backbone's maps become the detector's.
        classes: of the data, without the background.
        masks: whether there is a mask head.
        inputs: sizes and normalisation.
        heads: their form; None: as the neck's paper has it.
        batchnorm: whether the backbone's BatchNorms are trained, over all processes by ``trainer.sync_batchnorm``.

    Raises:
        UserError: the neck does not fit the backbone.
    """
    heads = heads or (VITDET if neck == "vitdet" else Heads())
    maps = _neck(backbone, neck, heads, batchnorm == "frozen")
    parts: dict[str, Any] = box_parts(maps, heads, classes)
    if masks:
        parts |= mask_parts(maps, parts["box_head"], heads, classes)
    if isinstance(maps, C4):
        parts |= C4_CANDIDATES
    build = MaskRCNN if masks else FasterRCNN
    made: nn.Module = build(
        maps,
        rpn_anchor_generator=(generator := Anchors(maps.strides, heads)),
        rpn_head=ProposalHead(maps.out_channels, generator.num_anchors_per_location()[0], heads.rpn_convolutions),
        rpn_post_nms_top_n_train=heads.proposals,
        box_batch_size_per_image=heads.regions,
        **parts,
    )
    made.transform = Preparation(inputs, int(max(maps.pooled.values())))
    return made


class Preparation(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's resizing, normalisation and batches of images; a square is padded to where ``inputs`` say so.

    Args:
        inputs: sizes and normalisation.
        divisor: the sides of a batch are multiples of it.
    """

    def __init__(self, inputs: Inputs, divisor: int) -> None:
        sides, skip = tuple(inputs.shorter), not inputs.resize_training
        super().__init__(sides, inputs.longest, inputs.mean, inputs.std, divisor, _skip_resize=skip)
        self.square = inputs.square

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Returns images [B, C, H, W], padded with zeros below and on the right."""
        batch: Tensor = super().batch_images(images, size_divisible)
        if self.square is None:
            return batch
        height, width = (max(0, self.square - side) for side in batch.shape[2:])
        return F.pad(batch, (0, width, 0, height))


def _neck(backbone: Backbone, neck: str, heads: Heads, frozen: bool) -> Neck:
    if neck == "fpn":
        return FeaturePyramid(backbone, heads.width, NORMS[heads.norm], frozen)
    if neck == "c4":
        return C4(backbone, frozen)
    raise UserError(f"neck={neck} is not one of vitdet, fpn, c4")

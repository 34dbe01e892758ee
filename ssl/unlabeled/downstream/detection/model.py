"""A detector of boxes, or of boxes and masks: a pretrained backbone in torchvision's Faster or Mask R-CNN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from unlabeled.downstream.detection.annotated.jitter import fitted, resized
from unlabeled.downstream.detection.networks.c4 import C4
from unlabeled.downstream.detection.networks.heads import (
    NORMS,
    VITDET,
    Anchors,
    Heads,
    Neck,
    ProposalHead,
    box_parts,
    mask_parts,
)
from unlabeled.downstream.detection.networks.stages import FeaturePyramid
from unlabeled.downstream.detection.networks.vitdet import ViTDet
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


SQUARE = Inputs((1024,), 1024, square=1024)  # arXiv:2203.16527, appendix A.2


def detector(
    backbone: Backbone,
    *,
    neck: NeckName,
    classes: int,
    masks: bool,
    inputs: Inputs | None = None,
    heads: Heads | None = None,
    batchnorm: BatchNorms = "trained",
    drop_path: float | None = None,
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
        inputs: sizes and normalisation; None: 1024 pixels for ``vitdet``, 800 for others, and ImageNet's mean and std.
        heads: their form; None: as the neck's paper has it.
        batchnorm: whether the backbone's BatchNorms are trained, over all processes by ``trainer.sync_batchnorm``.
        drop_path: of a ViT, see :class:`ViT`; None: 0.1.

    Raises:
        UserError: the neck does not fit the backbone, or a setting is of another neck.
    """
    inputs = inputs or (SQUARE if neck == "vitdet" else Inputs())
    heads = heads or (VITDET if neck == "vitdet" else Heads())
    _check_settings(neck, heads, batchnorm, drop_path)
    backbone.requires_grad_(True)  # also positions and a fixed patch projection
    if neck == "vitdet":
        share = 0.1 if drop_path is None else drop_path  # ViT-B's, appendix A.2
        maps: Neck = ViTDet(backbone, heads.width, inputs.square or inputs.longest, share)
    elif neck == "fpn":
        maps = FeaturePyramid(backbone, heads.width, NORMS[heads.norm], batchnorm == "frozen")
    else:
        maps = C4(backbone, batchnorm == "frozen")
    return _assembled(maps, classes, masks, inputs, heads)


def _assembled(maps: Neck, classes: int, masks: bool, inputs: Inputs, heads: Heads) -> nn.Module:
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

    Raises:
        UserError: a square whose side is no such multiple.
    """

    def __init__(self, inputs: Inputs, divisor: int) -> None:
        if inputs.square is not None and inputs.square % divisor:
            raise UserError(f"size={inputs.square}: with this backbone it must be a multiple of {divisor} pixels")
        sides, skip = tuple(inputs.shorter), not inputs.resize_training
        super().__init__(sides, inputs.longest, inputs.mean, inputs.std, divisor, _skip_resize=skip)
        self.square = inputs.square

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resizes as training's jitter does, with antialiasing, so that both see images of one kind."""
        if self.training and self._skip_resize:
            return image, target
        size = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        given = {"boxes": image.new_zeros(0, 4)} if target is None else target
        image, changed = resized((image, given), *fitted(image, size, self.max_size))
        return image, None if target is None else changed

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Returns images [B, C, H, W], padded with zeros below and on the right."""
        batch: Tensor = super().batch_images(images, size_divisible)
        if self.square is None:
            return batch
        height, width = (max(0, self.square - side) for side in batch.shape[2:])
        return F.pad(batch, (0, width, 0, height))


def _check_settings(neck: str, heads: Heads, batchnorm: str, drop_path: float | None) -> None:
    """Raises UserError for settings that the neck would ignore."""
    if neck not in ("vitdet", "fpn", "c4"):
        raise UserError(f"neck={neck} is not one of vitdet, fpn, c4")
    if neck != "vitdet" and drop_path is not None:
        raise UserError(f"drop_path={drop_path} is for neck=vitdet: leave it null with neck={neck}")
    if neck == "vitdet" and batchnorm == "frozen":
        raise UserError("batchnorm=frozen: a ViT has no BatchNorm: leave it at trained with neck=vitdet")
    if neck == "c4" and (heads.box_convolutions or heads.norm == "layer"):
        raise UserError("neck=c4: the last stage is the head: it takes no convolutions, and norm=none or batch")

"""Fine-tuned segmentation: the whole network and a head on its last map, by published settings.

A ViT has MAE's settings for ADE20K under a simple pyramid, a convolutional network MoCo's for Pascal VOC with its last
stage dilated.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from unlabeled.downstream.segmentation.dilation import DilatedHead, dilated
from unlabeled.downstream.segmentation.linear_segmenter import map_width
from unlabeled.downstream.segmentation.pyramid import PyramidHead
from unlabeled.errors import UserError
from unlabeled.evaluation.recipes.finetune import add_drop_path
from unlabeled.evaluation.recipes.layer_decay import layer_decay_groups
from unlabeled.objective import Backbone

KEY = "finetune=true"


@dataclass(frozen=True)
class FineTuning:
    """Settings of a fine-tuning whose values are published; ``name`` and ``source`` are for the page.

    Args:
        steps: of the optimizer.
        lr: peak rate.
        warmup_steps: factor of the rate that rises linearly from a millionth to 1.
        momentum: of SGD; None: AdamW.
        weight_decay: of the optimizer; a ViT's vectors, class token and positions are not decayed.
        layer_decay: factor of the rate from a block to the one before it; None: one rate.
        drop_path: of a ViT's last block.
        milestones: shares of the training after which the rate is divided by ten; (): it falls linearly to 0.
    """

    name: str
    source: str
    steps: int
    lr: float
    warmup_steps: int
    momentum: float | None
    weight_decay: float
    layer_decay: float | None
    drop_path: float
    milestones: tuple[float, ...]

    def rate(self, step: int) -> float:
        """Returns the rate of a step, from 0."""
        begun = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        passed = sum(step >= share * self.steps for share in self.milestones)
        falling = 0.1**passed if self.milestones else 1 - step / self.steps
        return self.lr * falling * (1e-6 + (1 - 1e-6) * begun)


VIT = FineTuning(
    "fine-tuned, simple pyramid",
    "MAE on ADE20K: open-mmlab/mmsegmentation, configs/mae/upernet_mae-base_fp16_8x2_512x512_160k_ade20k.py",
    steps=160_000,
    lr=1e-4,
    warmup_steps=1500,
    momentum=None,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path=0.1,
    milestones=(),
)
CNN = FineTuning(
    "fine-tuned, dilated FCN",
    "MoCo on Pascal VOC: arXiv:1911.05722, appendix A.4",
    steps=30_000,
    lr=3e-3,
    warmup_steps=0,
    momentum=0.9,
    weight_decay=1e-4,
    layer_decay=None,
    drop_path=0.0,
    milestones=(0.7, 0.9),
)


def published_settings(backbone: Backbone, size: int) -> FineTuning:
    """Returns those for a ViT or a CNN that sees images of ``size``. Raises UserError for a network that is neither."""
    if transformer_of(backbone) is not None:
        if size < 2 * (backbone.size_multiple or 1):
            raise UserError(f"size={size}: a pyramid needs two patches of {backbone.size_multiple} pixels to a side")
        return VIT
    dilated(backbone, KEY)
    return CNN


class TunedSegmenter(nn.Module):
    """Maps images [B, 3, h, w], normalised, to logits [B, classes, h, w]; a copy of the network is trained.

    Args:
        backbone: has features of the kind ``map``; it is not changed.
        classes: of the logits.
        size: pixels of an image's side, to see how wide the map is.

    Raises:
        UserError: a convolutional network whose last stage cannot be dilated.
    """

    def __init__(self, backbone: Backbone, classes: int, size: int) -> None:
        super().__init__()
        self.settings = published_settings(backbone, size)
        network = copy.deepcopy(backbone) if self.settings is VIT else dilated(backbone, KEY)
        width = map_width(network, size)
        self.backbone = network.requires_grad_(True)
        self.top: nn.Module = (PyramidHead if self.settings is VIT else DilatedHead)(width, classes)
        transformer = transformer_of(network)
        if transformer is not None:
            add_drop_path(transformer, self.settings.drop_path)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.top(self.backbone.features(images, ["map"])["map"])
        return F.interpolate(logits, images.shape[2:], mode="bilinear")

    def optimizer(self, settings: FineTuning) -> Optimizer:
        """Makes the optimizer; each of its groups has the ``lr_scale`` of its layer."""
        if settings.momentum is not None:
            return torch.optim.SGD(
                self.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
            )
        transformer = transformer_of(self.backbone)
        assert transformer is not None
        assert settings.layer_decay is not None
        groups = layer_decay_groups(transformer, self.top, settings.layer_decay, settings.weight_decay)
        return torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay)


def transformer_of(backbone: nn.Module) -> nn.Module | None:
    """Returns the vision transformer with its ``blocks``, which timm's is inside of a backbone; None for a CNN."""
    for network in (backbone, getattr(backbone, "model", None)):
        blocks: Any = getattr(network, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[0], "attn"):
            return network
    return None

"""A plain vision transformer as the backbone of a detector: ViTDet, Li et al. 2022, arXiv:2203.16527."""

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from unlabeled.backbones.recomputation import is_recomputed, recompute
from unlabeled.backbones.transformer import EPSILON, DropPath
from unlabeled.backbones.vit import ViT
from unlabeled.downstream.detection.networks.window_attention import WindowAttention, WindowBlock
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

WINDOW = 14  # patches along a side (section 4); 224 pixels in patches of 16, as in pretraining
GLOBAL_BLOCKS = 4  # with attention over the whole image, spread evenly (section 3)

norm2d = partial(LayerNorm2d, eps=EPSILON)  # over the channels of each cell


class ViTDet(nn.Module):
    """Maps images [B, channels, h, w] to maps of equal width: ``p2`` … ``p5`` and ``p6``, every second cell of p5.

    The ViT's blocks run on its patches alone: class token, registers and last norm are left out. All blocks but the
    last of each quarter attend within windows. Positions are interpolated to the image and are trained.

    Args:
        backbone: a ViT with its weights, which become part of the module.
        width: channels of each map.
        image_size: longer side of the images that it is trained with, pixels; others need interpolation.
        drop_path: see :class:`ViT`; takes the place of the backbone's own.

    Shape: h and w are multiples of twice the patch; p2 has a stride of a quarter of it.

    Raises:
        UserError: not a ViT, a shared bias of relative positions, or fewer blocks than four.
    """

    def __init__(self, backbone: Backbone, width: int, image_size: int, drop_path: float) -> None:
        super().__init__()
        vit = _checked(backbone)
        patch = vit.patch_size
        grid = 2 * math.ceil(image_size / (2 * patch))  # as images are padded
        self.patch_embed = vit.patch_embed
        self.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, vit.own_position :].clone())
        self.blocks = nn.ModuleList(_blocks(vit, grid, drop_path))
        if is_recomputed(vit.blocks[0]):
            recompute(self.blocks)
        self.pyramid = SimplePyramid(vit.num_features, width)
        self.table, self.patch, self.out_channels = vit.grid, patch, width
        # the maps that regions are cut from, and the strides of all that anchors lie on
        self.pooled: dict[str, float] = {f"p{level}": patch * 2.0 ** (level - 4) for level in range(2, 6)}
        self.strides: list[float] = [*self.pooled.values(), 4.0 * patch]

    def shards(self) -> list[nn.Module]:
        """Returns the blocks, for learning rates that fall from block to block."""
        return list(self.blocks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        made: dict[str, Tensor] = self.pyramid(self.trunk(images))
        return made

    def trunk(self, images: Tensor) -> Tensor:
        """Returns what the last block makes of the patches, without a norm, [B, D, h / patch, w / patch]."""
        rows, columns = (side // self.patch for side in images.shape[2:])
        x: Tensor = self.patch_embed(images) + self._positions(rows, columns)
        x = x.view(len(images), rows, columns, -1)
        for block in self.blocks:
            x = block(x)
        dense: Tensor = x.permute(0, 3, 1, 2)
        return dense

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Returns the table for a map of patches, [1, rows · columns, D]; bicubic, as the paper's code."""
        if rows == columns == self.table:
            return self.pos_embed
        plane = self.pos_embed.transpose(1, 2).reshape(1, -1, self.table, self.table)
        fitted = F.interpolate(plane, (rows, columns), mode="bicubic", align_corners=False)
        return fitted.flatten(2).transpose(1, 2)


class SimplePyramid(nn.Module):
    """Maps a single map [B, D, h, w] to five of 256 channels or another ``width`` (section 3, figure 2).

    p2 and p3 by deconvolutions of 2 × 2 with stride 2, p4 as it is, p5 by a maximum of 2 × 2; then a 1 × 1 and a 3 × 3
    convolution, each followed by a LayerNorm over channels.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        half, quarter = width_in // 2, width_in // 4
        up = nn.ConvTranspose2d(width_in, half, 2, 2), norm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2)
        self.p2 = nn.Sequential(*up, *_lateral(quarter, width))
        self.p3 = nn.Sequential(nn.ConvTranspose2d(width_in, half, 2, 2), *_lateral(half, width))
        self.p4 = nn.Sequential(*_lateral(width_in, width))
        self.p5 = nn.Sequential(nn.MaxPool2d(2, 2), *_lateral(width_in, width))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict((name, part(x)) for name, part in self.named_children())
        maps["p6"] = maps["p5"][:, :, ::2, ::2]
        return maps


def _lateral(width_in: int, width: int) -> list[nn.Module]:
    first = nn.Conv2d(width_in, width, 1, bias=False)
    return [first, norm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False), norm2d(width)]


def _blocks(vit: ViT, grid: int, drop_path: float) -> list[nn.Module]:
    depth = len(vit.blocks)
    whole = {depth * (quarter + 1) // GLOBAL_BLOCKS - 1 for quarter in range(GLOBAL_BLOCKS)}
    made: list[nn.Module] = []
    for number, block in enumerate(vit.shards()):
        attention: Any = block.attn
        share = drop_path * number / (depth - 1)
        window = None if number in whole else WINDOW
        path = DropPath(share) if share else nn.Identity()
        made.append(WindowBlock(block, WindowAttention(attention, window, grid), path))  # type: ignore[arg-type]
    return made


def _checked(backbone: Backbone) -> ViT:
    name = type(backbone).__name__
    if not isinstance(backbone, ViT):
        raise UserError(
            f"neck=vitdet: {name} is no ViT of this package: give backbone=vit_base or the like, which also take"
            " weights of timm's ViTs, or neck=fpn for a convolutional network"
        )
    if backbone.pos_embed is None or backbone.rel_pos_bias is not None:
        raise UserError(
            "neck=vitdet: backbone.relative_position=true is a bias for whole images of one size, and windows have"
            " none: give a ViT with a table of positions"
        )
    if len(backbone.blocks) < GLOBAL_BLOCKS:
        raise UserError(
            f"neck=vitdet: backbone.depth={len(backbone.blocks)}: {GLOBAL_BLOCKS} blocks attend to the whole image:"
            f" give a ViT of {GLOBAL_BLOCKS} blocks at least"
        )
    return backbone

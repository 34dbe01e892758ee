"""Vision transformers whose encoder can run on a subset of the patches, as masked pretraining needs.

Dosovitskiy et al. 2020, arXiv:2010.11929. All tensors have the names of timm's vision_transformer and the official MAE
and MoCo v3 code, so that checkpoints load in either direction.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.freezing import freeze_blocks, keep_still
from unlabeled.backbones.initialisation import (
    init_as_beit,
    init_linears_truncated,
    init_linears_xavier,
    init_xavier_uniform,
)
from unlabeled.backbones.recomputation import recompute
from unlabeled.backbones.relative_position import RelativePosition
from unlabeled.backbones.transformer import EPSILON as EPSILON
from unlabeled.backbones.transformer import Attention as Attention
from unlabeled.backbones.transformer import Block as Block
from unlabeled.backbones.transformer import Blocks
from unlabeled.core.ranges import Channels, Count, Layers, NoneOrMore, PartialShare, Pixels, SomeShare
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

Position = Literal["sincos", "sincos_rows_first", "learned", "none"]
Initialisation = Literal["mae", "moco_v3", "dino", "dinov2", "beit", "simmim"]
Pooling = Literal["cls", "gap"]


class ViT(Backbone):
    """A class token and the patches of an image, passed through transformer blocks and a last LayerNorm.

    Args:
        image_size: height and width of the images, pixels.
        patch_size: height and width of a patch, pixels.
        width: of the tokens; a multiple of 4.
        depth: number of blocks.
        heads: of the attention; divides ``width``.
        position: ``sincos`` is the fixed table of MAE, ``sincos_rows_first`` that of MoCo v3 (see
            :func:`sincos_position`), ``learned`` a trained table; ``none``: there is no table, which needs
            ``relative_position``.
        initialisation: see :meth:`_initialise`.
        pooling: ``cls`` is the class token, ``gap`` the mean of the patches without it. Both are taken **after** the
            last norm, so that one checkpoint serves both (MAE's fine-tuning drops that norm and puts a new ``fc_norm``
            after the mean instead).
        gradient_checkpointing: see :func:`~unlabeled.backbones.recomputation.recompute`.
        channels: of the images.
        freeze: how many blocks are not trained, nor is what makes the tokens before them.
        drop_path: share of images whose attention or MLP a block leaves out while it is trained (stochastic depth,
            arXiv:1603.09382): rises from 0 in the first block to this in the last.
        uniform_drop_path: it is the same in every block, as in DINOv2.
        layer_scale: initial factor of each channel of what attention and MLP add (arXiv:2103.17239); None: no factors.
        registers: further learned tokens behind the class token, without positions (arXiv:2309.16588).
        class_token: whether there is one; if not, as in I-JEPA, features are the mean of the patches.
        relative_position: a learned bias of attention, :class:`RelativePosition`, which all blocks share. It is for
            images of ``image_size``, all of their patches, a class token and no registers.

    Shape: images [B, channels, image_size, image_size] → features [B, width]; images of another size, if it is made of
    whole patches, get positions interpolated from the table.

    Raises:
        UserError: sizes that do not fit each other, or images that are not made of whole patches.
    """

    def __init__(
        self,
        image_size: Pixels,
        patch_size: Pixels,
        width: Channels,
        depth: Layers,
        heads: Channels,
        position: Position = "sincos",
        initialisation: Initialisation = "mae",
        pooling: Pooling = "cls",
        gradient_checkpointing: bool = False,
        channels: Channels = 3,
        freeze: Count | None = None,
        drop_path: PartialShare = 0.0,
        uniform_drop_path: bool = False,
        layer_scale: SomeShare | None = None,
        registers: NoneOrMore = 0,
        class_token: bool = True,
        relative_position: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UserError(f"backbone.patch_size={patch_size} does not divide backbone.image_size={image_size}")
        if pooling not in ("cls", "gap"):
            raise UserError(f"backbone.pooling={pooling} is neither cls nor gap")
        if pooling == "cls" and not class_token:
            raise UserError("backbone.pooling=cls: with backbone.class_token=false there is none: give gap")
        check_width(width, heads, "backbone.")
        _check_relative(position, relative_position, class_token, registers)
        self.image_size: int = image_size
        self.patch_size, self.pooling, self.position = patch_size, pooling, position
        self.size_multiple = None if relative_position else patch_size
        self.num_features = width
        self.grid = image_size // patch_size  # patches along a side
        self.num_patches = self.grid**2
        self.channels = channels
        self.patch_embed = PatchEmbedding(patch_size, width, channels)
        self.own_position = int(class_token)  # first rows of the table that belong to no patch
        self.prefix = self.own_position + registers  # tokens before the patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed: Any = None  # or a parameter, [1, own_position + L, width]
        if position != "none":
            table = _position(position, width, self.grid)[:, 1 - self.own_position :]
            table = table.clone(memory_format=torch.contiguous_format)  # a part of memory has strides of the whole
            self.pos_embed = nn.Parameter(table, requires_grad=position == "learned")
        self.rel_pos_bias = RelativePosition(self.grid, heads) if relative_position else None
        dropped = [drop_path if uniform_drop_path else drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = Blocks(*(Block(width, heads, share, layer_scale) for share in dropped))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self._initialise(initialisation)
        if gradient_checkpointing:
            recompute(self.shards())
        if not class_token:
            self.kinds = tuple(kind for kind in self.kinds if kind != "cls")
        self.freeze = freeze
        if freeze_blocks([self.patch_embed], self.shards(), freeze):
            for part in (self.cls_token, self.reg_token, self.pos_embed, self.rel_pos_bias):
                if part is not None:
                    part.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As every module, but for what is frozen, which drops no path either."""
        super().train(mode)
        keep_still([self.patch_embed, *self.shards()[: self.freeze]] if self.freeze else [])
        return self

    def shards(self) -> list[nn.Module]:
        return list(self.blocks)

    kinds: tuple[str, ...] = ("last", "last4", "cls", "patches", "tokens", "map")

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.tokens(images))

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        """See :meth:`Backbone.features`; ``last4``: class tokens through the last norm (DINO's linear evaluation).

        Without a class token they are the means of the patches.
        """
        self.check_kinds(kinds)
        outputs = self.block_outputs(images)
        tokens = self.norm(outputs[-1])
        made: dict[str, Callable[[], Tensor]] = {
            "last": lambda: self.pool(tokens),
            "last4": lambda: torch.cat([self._summary(self.norm(each)) for each in outputs[-4:]], 1),
            "cls": lambda: tokens[:, 0],
            "patches": lambda: tokens[:, self.prefix :].mean(1),
            "tokens": lambda: tokens[:, self.prefix :],
            "map": lambda: self._as_map(tokens, images),
        }
        return {kind: made[kind]() for kind in kinds}

    def _as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Returns the patches' tokens as a map [B, D, h / patch, w / patch]."""
        rows, columns = (side // self.patch_size for side in images.shape[2:])
        return tokens[:, self.prefix :].transpose(1, 2).reshape(len(images), -1, rows, columns)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """Returns what each block makes of images [B, channels, h, w], [B, prefix + L, width], without a norm."""
        x, bias, outputs = self._embed(images), self._bias(), []
        for block in self.blocks:
            x = block(x, bias)
            outputs.append(x)
        return outputs

    def outputs_and_tokens(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns :meth:`block_outputs`, and the last of them through the last norm, as :meth:`tokens` does."""
        outputs = self.block_outputs(images)
        return outputs, self.norm(outputs[-1])

    def _bias(self) -> Tensor | None:
        return None if self.rel_pos_bias is None else self.rel_pos_bias()

    def _summary(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.prefix :].mean(1) if self.cls_token is None else tokens[:, 0]

    def tokens(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        replace: Tensor | None = None,
        token: Tensor | None = None,
    ) -> Tensor:
        """Returns the class token, the registers and the patches after the last norm.

        Args:
            images: [B, channels, image_size, image_size].
            keep: int64 [B, k], the patches that the blocks see, in this order; None for all L of them. Patches count
                row by row; positions are added before any is left out.
            replace: bool [B, L], the patches that become ``token`` before positions are added; None for none.
            token: [1, 1, width], a mask token, which the method owns.

        Returns:
            [B, prefix + k, width], or [B, prefix + L, width]; the class token comes first, then the registers.

        Raises:
            UserError: only one of ``replace`` and ``token``, or a ``replace`` of another shape.
        """
        tokens: Tensor = self.norm(self.blocks(self._embed(images, keep, replace, token), self._bias()))
        return tokens

    def _embed(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        replace: Tensor | None = None,
        token: Tensor | None = None,
    ) -> Tensor:
        patches = self.patch_embed(images)
        if replace is not None or token is not None:
            patches = replace_patches(patches, replace, token)
        first: Tensor | None = self.cls_token
        if self.pos_embed is not None:
            patches = patches + self._positions(images, self.pos_embed[:, self.own_position :])
            first = None if first is None else first + self.pos_embed[:, :1]
        if keep is not None:
            patches = gather_tokens(patches, keep)
        tokens = [] if first is None else [first]
        tokens += [] if self.reg_token is None else [self.reg_token]
        return torch.cat([*(each.expand(images.shape[0], -1, -1) for each in tokens), patches], 1)

    def _positions(self, images: Tensor, table: Tensor) -> Tensor:
        """Returns the patches' positions [1, L, width] of a ``table``, interpolated for images of another size.

        Interpolation is bicubic without antialiasing, for small crops and evaluation at another resolution, as in
        DINO's code (facebookresearch/dino, interpolate_pos_encoding; its factor is slightly more than the ratio of the
        sizes, to avoid a rounding error). Nothing is computed for images of ``image_size``.
        """
        height, width = images.shape[2:]
        if (height, width) == (self.image_size, self.image_size):
            return table
        p = self.patch_size
        if height % p or width % p:
            raise UserError(
                f"images of {height}×{width} pixels are not made of patches of {p}: give views.size a multiple of"
                f" backbone.patch_size={p}"
            )
        plane = table.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        fitted = F.interpolate(plane, (height // p, width // p), mode="bicubic", align_corners=False)
        return fitted.flatten(2).transpose(1, 2)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pools tokens [B, 1 + n, width] → features [B, width]."""
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, self.prefix :].mean(1)

    def freeze_patch_projection(self) -> None:
        """Freezes the random projection of the patches, for stability (MoCo v3, arXiv:2104.02057, section 4)."""
        self.patch_embed.proj.requires_grad_(False)

    def _initialise(self, scheme: Initialisation) -> None:
        """Initialises as the official code of MAE (models_mae.py) or MoCo v3 (vits.py).

        Both use Xavier for linear layers, with biases of 0, and treat the patch projection as a linear layer. ``mae``
        draws the class token from N(0, 0.02²) and keeps the projection's bias as convolutions have it; ``moco_v3`` uses
        N(0, 1e-6²) and a bias of 0, and counts queries, keys and values as three layers. ``dino``
        (facebookresearch/dino, vision_transformer.py) draws linear layers from N(0, 0.02²) cut at ±2, as timm, and
        leaves the projection as convolutions have it; ``dinov2`` differs from it in class token and registers, which
        are drawn from N(0, 1e-6²); ``beit`` is :func:`init_as_beit`, and ``simmim`` the same cut at ±0.02.
        """
        known = get_args(Initialisation)
        if scheme not in known:
            raise UserError(f"backbone.initialisation={scheme} is not one of {', '.join(known)}")
        if scheme in ("beit", "simmim"):
            init_as_beit(self, self.blocks, cut=0.02 if scheme == "simmim" else 2.0)
            self._initialise_tokens(0.02, cut=0.02 if scheme == "simmim" else None)
            return
        if scheme in ("dino", "dinov2"):
            init_linears_truncated(self)
            self._initialise_tokens(1e-6 if scheme == "dinov2" else 0.02)
            return
        init_linears_xavier(self)
        projection = self.patch_embed.proj
        init_xavier_uniform(projection.weight, inputs=self.channels * self.patch_size**2, outputs=self.num_features)
        self._initialise_tokens(0.02 if scheme == "mae" else 1e-6)
        if scheme == "moco_v3":
            assert projection.bias is not None
            nn.init.zeros_(projection.bias)
            for block in self.blocks.modules():
                if isinstance(block, Attention):
                    init_xavier_uniform(block.qkv.weight, inputs=self.num_features, outputs=self.num_features)

    def _initialise_tokens(self, std: float, cut: float | None = None) -> None:
        for token in (self.cls_token, self.reg_token):
            if token is not None and cut is None:
                nn.init.normal_(token, std=std)
            elif token is not None and cut is not None:
                nn.init.trunc_normal_(token, std=std, a=-cut, b=cut)
        if self.pos_embed is not None and self.pos_embed.requires_grad:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)


class PatchEmbedding(nn.Module):
    """Projects each patch of images [B, channels, h, w] linearly, row by row: [B, L, width]."""

    def __init__(self, patch_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.proj(images)
        return projected.flatten(2).transpose(1, 2)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Selects rows of each image's tokens: [B, n, D] and int64 [B, k] → [B, k, D]."""
    return tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))


def replace_patches(patches: Tensor, replace: Tensor | None, token: Tensor | None) -> Tensor:
    """Returns patches [B, L, D] in which those where ``replace`` [B, L] is true are ``token`` [1, 1, D]."""
    if replace is None or token is None:
        raise UserError("ViT.tokens: replace and token belong together: give both or none")
    if replace.shape != patches.shape[:2]:
        raise UserError(f"ViT.tokens: replace {list(replace.shape)} must be {list(patches.shape[:2])}")
    return torch.where(replace[:, :, None], token.to(patches.dtype), patches)


def sincos_position(width: int, grid: int, rows_first: bool = False) -> Tensor:
    """Returns fixed positions on a square grid, zero for the class token: [1, 1 + grid², width].

    The channels are four quarters: sine and cosine of the patch's column, then of its row, at the angles index ·
    10000^(−4i/width). MAE's code (util/pos_embed.py) calls the first half ``emb_h``. MoCo v3 (vits.py) intends the same
    but, by the order of its meshgrid, has the row first: ``rows_first``.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, width / 2]
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    table = torch.cat([rows, columns] if rows_first else [columns, rows], 2).flatten(0, 1)
    return F.pad(table, (0, 0, 1, 0))[None].float()


def check_width(width: int, heads: int, owner: str) -> None:
    """Raises UserError if blocks cannot be built; ``owner`` begins the keys that its message names."""
    if width % heads:
        raise UserError(f"{owner}heads={heads} does not divide {owner}width={width}")
    if width % 4:
        raise UserError(f"{owner}width={width} is not a multiple of 4, as sines and cosines of two axes need")


def _position(kind: Position, width: int, grid: int) -> Tensor:
    if kind not in ("sincos", "sincos_rows_first", "learned"):
        raise UserError(f"backbone.position={kind} is not one of sincos, sincos_rows_first, learned, none")
    if kind == "learned":
        return torch.zeros(1, 1 + grid**2, width)
    return sincos_position(width, grid, rows_first=kind == "sincos_rows_first")


def _check_relative(position: Position, relative: bool, class_token: bool, registers: int) -> None:
    if position == "none" and not relative:
        raise UserError("backbone.position=none: blocks would not know where patches are: give relative_position=true")
    if relative and (registers or not class_token):
        raise UserError(
            "backbone.relative_position=true: its table has a place for a class token and none for registers: give"
            " backbone.class_token=true backbone.registers=0"
        )

"""MAE: most patches of an image are removed, and a transformer that sees the others reconstructs them.

He et al. 2021, arXiv:2111.06377. Official code: github.com/facebookresearch/mae.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.backbones.initialisation import init_linears_xavier
from unlabeled.backbones.vit import (
    EPSILON,
    Block,
    ViT,
    check_width,
    gather_tokens,
    sincos_position,
)
from unlabeled.core.ranges import Between, Channels, Layers
from unlabeled.core.seeding import derive_seed, to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_count, check_shapes, needs_vit
from unlabeled.objectives.parts.precision import full_precision

MASKING = 0x6D61736B  # "mask" in ASCII; the seeds of views have the small number of a view here


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Maps images [B, 3, H, W] to patches row by row [B, L, p·p·3]; inside a patch row, column, channel.

    Raises UserError unless whole patches fit both sides.
    """
    check_shapes("patchify", {"images": (images, "BCHW")})
    check_count("patchify", patch_size=patch_size)
    batch, channels, height, width = images.shape
    p = patch_size
    if height % p or width % p:
        raise UserError(f"patchify: images of {height} × {width} are not made of whole patches of patch_size={p}")
    cut = images.reshape(batch, channels, height // p, p, width // p, p)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Inverts :func:`patchify` for square images; raises UserError if the patches do not form a square."""
    check_shapes("unpatchify", {"patches": (patches, "BLD")})
    check_count("unpatchify", patch_size=patch_size)
    batch, length, _ = patches.shape
    grid, p = math.isqrt(length), patch_size
    if grid * grid != length or patches.shape[2] % (p * p):
        raise UserError(f"unpatchify: patches {list(patches.shape)} make no square image with patch_size={p}")
    cut = patches.reshape(batch, grid, grid, p, p, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, grid * p, grid * p)


def num_kept_patches(num_patches: int, mask_ratio: float) -> int:
    """Returns the number of patches that the encoder sees: L·(1 − ratio) rounded down, at least 1.

    It equals the official ``int(L * (1 - mask_ratio))`` without its rounding errors: that keeps 9 of 100 at a ratio of
    0.9, and 0 of 10. Raises UserError for a ratio outside of [0, 1).
    """
    if not 0 <= mask_ratio < 1:
        raise UserError(f"random_masking: mask_ratio={mask_ratio} must be at least 0 and below 1")
    return max(1, math.floor(num_patches * (1 - mask_ratio) + 1e-6))


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps the patches of smallest noise, :func:`num_kept_patches` of each image.

    Args:
        noise: [B, L].
        mask_ratio: share of the patches that is removed.

    Returns:
        ids_keep int64 [B, k], in order of noise; mask [B, L], 1 where removed and 0 where kept; ids_restore int64
        [B, L], the rank of each patch in the order of noise.

    Raises:
        UserError: a ratio outside of [0, 1), or noise that is no matrix.
    """
    check_shapes("random_masking", {"noise": (noise, "BL")})
    kept = num_kept_patches(noise.shape[1], mask_ratio)
    ids_shuffle = noise.argsort(dim=1, stable=True)
    ids_keep = ids_shuffle[:, :kept]
    mask = torch.ones_like(noise).scatter(1, ids_keep, 0.0)
    return ids_keep, mask, ids_shuffle.argsort(dim=1)


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises each patch [B, L, D] over all its values; also returns means and deviations [B, L, 1].

    The variance is the unbiased one, as in the official code: with p = 2 the targets are 4 % smaller than otherwise.
    """
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation


@full_precision
def masked_patch_loss(
    prediction: Tensor, images: Tensor, mask: Tensor, patch_size: int, normalize_targets: bool
) -> Tensor:
    """Returns the mean squared error per patch, over the removed patches (arXiv:2111.06377, section 3).

    The mean is over all processes: if they hold unequal numbers of patches, local values are weighted such that their
    mean over the processes is the value of one process with the joined batch.

    Args:
        prediction: [B, L, p·p·3].
        images: [B, 3, H, W], as the encoder gets them.
        mask: [B, L], 1 where removed.
        patch_size: p.
        normalize_targets: compare with patches of mean 0 and variance 1 (the official ``--norm_pix_loss``).

    Returns:
        Scalar.

    Raises:
        UserError: shapes that do not fit together.
    """
    targets = patchify(images, patch_size)
    fitting = {"prediction": (prediction, "BLD"), "the patches of images": (targets, "BLD")}
    check_shapes("masked_patch_loss", {**fitting, "mask": (mask, "BL")})
    if normalize_targets:
        targets = normalize_patches(targets)[0]
    errors = (prediction - targets).square().mean(2)
    removed = distributed.total(mask.sum()) / distributed.world_size()
    return (errors * mask).sum() / removed


class Decoder(nn.Module):
    """Maps the tokens of the kept patches to the pixels of all patches.

    Args:
        grid: patches along a side.
        patch_size: pixels.
        in_features: width of the encoder's tokens.
        width, depth, heads: of the decoder's own blocks.
        channels: of the images.
    """

    def __init__(
        self, grid: int, patch_size: int, in_features: int, width: int, depth: int, heads: int, channels: int = 3
    ) -> None:
        super().__init__()
        check_width(width, heads, "objective.decoder_")
        self.decoder_embed = nn.Linear(in_features, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(sincos_position(width, grid), requires_grad=False)
        self.decoder_blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.decoder_norm = nn.LayerNorm(width, eps=EPSILON)
        self.decoder_pred = nn.Linear(width, patch_size**2 * channels)
        init_linears_xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, ids_restore: Tensor) -> Tensor:
        """Maps tokens [B, 1 + k, in_features] in order of noise, int64 [B, L] → [B, L, p·p·3] in order of position."""
        x = self.decoder_embed(tokens)
        batch, length = ids_restore.shape
        removed = self.mask_token.expand(batch, length + 1 - x.shape[1], -1)
        patches = gather_tokens(torch.cat([x[:, 1:], removed], 1), ids_restore)
        x = torch.cat([x[:, :1], patches], 1) + self.decoder_pos_embed
        pixels: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))
        return pixels[:, 1:]


def reconstruct(
    encoder: ViT, decoder: Decoder, images: Tensor, noise: Tensor, mask_ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks images, encodes the kept patches, decodes all.

    Args:
        images: [B, 3, H, W].
        noise: [B, L].
        mask_ratio: share of the patches that is hidden from the encoder.

    Returns:
        prediction [B, L, p·p·3], mask [B, L] and the encoder's tokens [B, 1 + k, width].
    """
    patches = encoder.grid**2
    if noise.shape != (len(images), patches):
        raise UserError(f"noise {list(noise.shape)} for images {list(images.shape)}: must be [B, {patches}]")
    ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
    tokens = encoder.tokens(images, ids_keep)
    return decoder(tokens, ids_restore), mask, tokens


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder with the official names of the whole state_dict, where both are on one level.

    Args:
        image_size, patch_size: pixels.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder; 512, 8 and 16 in every official model.
        normalize_targets: see :func:`masked_patch_loss`.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        normalize_targets: bool,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
        decoder_sizes = {"decoder_width": decoder_width, "decoder_depth": decoder_depth, "decoder_heads": decoder_heads}
        check_count("MaskedAutoencoder", **sizes, **decoder_sizes)
        self.encoder = ViT(image_size, patch_size, width, depth, heads)
        self.decoder = Decoder(self.encoder.grid, patch_size, width, decoder_width, decoder_depth, decoder_heads)
        self.normalize_targets = normalize_targets
        self.register_state_dict_post_hook(_to_official)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_official)  # type: ignore[no-untyped-call]

    def forward_masked(self, images: Tensor, noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Maps images [B, 3, H, W] and noise [B, L] → loss, prediction [B, L, p·p·3] and mask [B, L]."""
        prediction, mask, _ = reconstruct(self.encoder, self.decoder, images, noise, mask_ratio)
        loss = masked_patch_loss(prediction, images, mask, self.encoder.patch_size, self.normalize_targets)
        return loss, prediction, mask


def _to_official(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith((f"{prefix}encoder.", f"{prefix}decoder."))]:
        state_dict[prefix + key.removeprefix(prefix).partition(".")[2]] = state_dict.pop(key)


def _from_official(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        part = "decoder" if name.startswith(("mask_token", "decoder_")) else "encoder"
        state_dict[f"{prefix}{part}.{name}"] = state_dict.pop(key)


class MAE(Objective):
    """A ViT, and a decoder that is only used in pretraining, trained with :func:`masked_patch_loss`.

    ``Output.features`` are the pooled tokens of the kept patches; features of the whole image would cost four times as
    much encoder work again. The features of an image depend on that image alone.

    Args:
        backbone: what is pretrained; must be one of the project's own ViTs.
        mask_ratio: share of the patches that is hidden from the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        normalize_targets: predict patches of mean 0 and variance 1.

    Raises:
        UserError: another backbone, or a ratio that removes nothing or everything.
    """

    backbone: ViT

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: Between,
        decoder_width: Channels,
        decoder_depth: Layers,
        decoder_heads: Channels,
        normalize_targets: bool,
    ) -> None:
        super().__init__()
        backbone = needs_vit("mae", backbone, part_of_patches=True)
        if backbone.prefix != 1 or backbone.cls_token is None:
            raise UserError(
                "objective=mae: its decoder takes a class token and no register: give backbone.registers=0 and"
                " backbone.class_token=true"
            )
        if not 0 < mask_ratio < 1 or backbone.num_patches < 2:
            raise UserError(f"objective.mask_ratio={mask_ratio} of {backbone.num_patches} patches: some must be left")
        self.backbone = backbone
        self.decoder = Decoder(
            backbone.grid,
            backbone.patch_size,
            backbone.num_features,
            decoder_width,
            decoder_depth,
            decoder_heads,
            backbone.channels,
        )
        self.mask_ratio, self.normalize_targets = mask_ratio, normalize_targets

    def check(self, plan: Plan) -> None:
        """Refuses a second view, which MAE would not use."""
        plan.needs_views(1, 1)

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"mask_ratio": self.mask_ratio}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images = batch.views[0]
        noise = to_device(masking_noise(progress, len(images), self.backbone.num_patches), images.device)
        prediction, mask, tokens = reconstruct(self.backbone, self.decoder, images, noise, self.mask_ratio)
        loss = masked_patch_loss(prediction, images, mask, self.backbone.patch_size, self.normalize_targets)
        return Output(loss, self.backbone.pool(tokens.detach()))

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the loss of a decoder that always predicts each patch's mean; None without normalisation.

        Targets then have mean 0 and unbiased variance 1, so that the mean of their squares is 1 − 1/(p·p·channels), a
        little less for flat images. The loss falls from that value.
        """
        values = self.backbone.patch_size**2 * self.backbone.channels
        return 1 - 1 / values if self.normalize_targets else None

    def visualize(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Returns the masked image, the image with reconstructed patches, and the image.

        Normalised targets have no mean and deviation: these two are taken from the image itself.
        """
        images, p = batch.views[0], self.backbone.patch_size
        noise = masking_noise(Progress(0, 1, 1, seed), len(images), self.backbone.num_patches).to(images.device)
        painted, mask, _ = reconstruct(self.backbone, self.decoder, images, noise, self.mask_ratio)
        patches, removed = patchify(images, p), mask[:, :, None] > 0
        if self.normalize_targets:
            _, mean, deviation = normalize_patches(patches)
            painted = painted * deviation + mean
        masked = torch.where(removed, images.mean(), patches)
        painted = torch.where(removed, painted, patches)
        return {"seen": unpatchify(masked, p), "reconstructed": unpatchify(painted, p), "original": images}


def masking_noise(progress: Progress, count: int, num_patches: int) -> Tensor:
    """Returns noise [count, L] of this process's images, from (seed, step, position in the global batch)."""
    first, total = distributed.rank() * count, distributed.world_size() * count
    generator = torch.Generator().manual_seed(derive_seed(progress.seed, progress.batch, MASKING))
    return torch.rand(total, num_patches, generator=generator)[first : first + count]

"""SimMIM: squares of an image are hidden, and one linear layer on the network paints their pixels.

Xie et al. 2021, arXiv:2111.09886. Official code: github.com/microsoft/SimMIM (models/simmim.py, data/data_simmim.py).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.backbones.vit import ViT
from unlabeled.core.ranges import Between, Count
from unlabeled.core.seeding import derive_seed, to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_count, check_shapes, needs_vit
from unlabeled.objectives.parts.precision import full_precision

MASKING = 0x756E6974  # "unit" in ASCII; the seeds of views have the small number of a view here


@full_precision
def simmim_loss(prediction: Tensor, images: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """Returns the mean absolute error of the hidden pixels (arXiv:2111.09886, section 3.4).

    Σ |x − x̂| · m / (Σ m + 1e-5) / channels, with a mask m of pixels. The mean is over all processes: if they hold
    unequal numbers of hidden patches, local values are weighted such that their mean over the processes is the value of
    one process with the joined batch.

    Args:
        prediction: [B, C, H, W].
        images: [B, C, H, W], as the encoder gets them.
        mask: [B, L], true or 1 where hidden; patches row by row.
        patch_size: height and width of a patch, pixels.

    Returns:
        Scalar.

    Raises:
        UserError: shapes that do not fit together.
    """
    named = {"prediction": (prediction, "BCHW"), "images": (images, "BCHW"), "mask": (mask, "BL")}
    sizes = check_shapes("simmim_loss", named)
    check_count("simmim_loss", patch_size=patch_size)
    height, width = sizes["H"] // patch_size, sizes["W"] // patch_size
    if (height * patch_size, width * patch_size, height * width) != (sizes["H"], sizes["W"], sizes["L"]):
        raise UserError(
            f"simmim_loss: mask {list(mask.shape)} has no place for each patch of {patch_size} pixels of images"
            f" {list(images.shape)}"
        )
    hidden = pixels_of(mask.view(-1, height, width), patch_size).to(prediction.dtype)
    count = (distributed.total(hidden.sum()) + 1e-5) / distributed.world_size()
    return ((images - prediction).abs() * hidden).sum() / count / sizes["C"]


def pixels_of(mask: Tensor, patch_size: int) -> Tensor:
    """Maps a mask of patches [B, h, w] to one of pixels [B, 1, h·p, w·p]."""
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]


def hidden_units(units: int, mask_ratio: float) -> int:
    """Returns how many of the units are hidden: units · ratio rounded up, without its rounding errors."""
    return math.ceil(units * mask_ratio - 1e-6)


def unit_masks(progress: Progress, count: int, grid: int, unit: int, mask_ratio: float) -> Tensor:
    """Hides squares of ``unit`` × ``unit`` patches, :func:`hidden_units` of each image, at random.

    Args:
        progress: seed and batch.
        count: images of this process.
        grid: patches along a side, a multiple of ``unit``.
        unit: patches along a side of a square.
        mask_ratio: share of the squares.

    Returns:
        bool [count, grid²], on the CPU; rows of the global batch.
    """
    first, total = distributed.rank() * count, distributed.world_size() * count
    generator = np.random.Generator(np.random.PCG64(derive_seed(progress.seed, progress.batch, MASKING)))
    side = grid // unit
    order = generator.random((total, side**2)).argsort(axis=1)[first : first + count]
    hidden = np.zeros((count, side**2), dtype=np.bool_)
    np.put_along_axis(hidden, order[:, : hidden_units(side**2, mask_ratio)], True, axis=1)
    squares = hidden.reshape(count, side, side).repeat(unit, axis=1).repeat(unit, axis=2)
    return torch.tensor(squares.reshape(count, -1))


class SimMIM(Objective):
    """A ViT with a mask token in place of hidden patches, and a linear decoder, trained with :func:`simmim_loss`.

    The network sees the whole sequence. ``Output.features`` are those of the masked image: those of the whole one would
    cost a second forward.

    Args:
        backbone: what is pretrained; must be one of the project's own ViTs.
        mask_unit: patches along a side of a square that is hidden as a whole.
        mask_ratio: share of the squares that is hidden.

    Raises:
        UserError: another backbone, squares that do not fit the patches, or a ratio that hides nothing or everything.
    """

    backbone: ViT

    def __init__(self, backbone: Backbone, mask_unit: Count, mask_ratio: Between) -> None:
        super().__init__()
        vit = needs_vit("simmim", backbone)
        if vit.grid % mask_unit:
            raise UserError(
                f"objective.mask_unit={mask_unit} does not divide the {vit.grid} patches along a side of the images"
            )
        units = (vit.grid // mask_unit) ** 2
        if not 0 < mask_ratio < 1 or hidden_units(units, mask_ratio) == units:
            raise UserError(
                f"objective.mask_ratio={mask_ratio} of {units} squares of objective.mask_unit={mask_unit} patches: some"
                " must be left: give smaller ones"
            )
        self.backbone = vit
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.num_features))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        painted = vit.patch_size**2 * vit.channels
        self.decoder = nn.Sequential(nn.Conv2d(vit.num_features, painted, 1), nn.PixelShuffle(vit.patch_size))
        self.mask_unit, self.mask_ratio = mask_unit, mask_ratio

    def check(self, plan: Plan) -> None:
        """Refuses a second view, which SimMIM would not use."""
        plan.needs_views(1, 1)

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"mask_ratio": self.mask_ratio}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images = batch.views[0]
        mask = self._mask(progress, images)
        prediction, tokens = self._paint(images, mask)
        loss = simmim_loss(prediction, images, mask, self.backbone.patch_size)
        return Output(loss, self.backbone.pool(tokens.detach()))

    def _mask(self, progress: Progress, images: Tensor) -> Tensor:
        grid = self.backbone.grid
        return to_device(unit_masks(progress, len(images), grid, self.mask_unit, self.mask_ratio), images.device)

    def _paint(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images [B, C, H, W] as the decoder paints them, and the tokens."""
        tokens = self.backbone.tokens(images, replace=mask, token=self.mask_token)
        patches = tokens[:, self.backbone.prefix :].transpose(1, 2)
        grid = self.backbone.grid
        return self.decoder(patches.reshape(len(images), -1, grid, grid)), tokens

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns None: the loss of a network that paints the mean depends on the images."""
        return None

    def visualize(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Returns the masked image, the image with painted squares, and the image."""
        images = batch.views[0]
        mask = self._mask(Progress(0, 1, 1, seed), images)
        painted, _ = self._paint(images, mask)
        grid = self.backbone.grid
        hidden = pixels_of(mask.view(-1, grid, grid), self.backbone.patch_size)
        seen = torch.where(hidden, images.mean(), images)
        return {"seen": seen, "reconstructed": torch.where(hidden, painted, images), "original": images}

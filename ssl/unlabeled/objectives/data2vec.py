"""data2vec for images: hidden patches are predicted as a slow copy has them, as the mean of its upper blocks.

Baevski et al. 2022, arXiv:2202.03555. Official code: github.com/facebookresearch/fairseq
(examples/data2vec/models/data2vec_vision.py) and github.com/facebookresearch/data2vec_vision.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.backbones.vit import ViT
from unlabeled.core.ranges import Between, Count, Share, SomeShare, Weight
from unlabeled.core.seeding import to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema
from unlabeled.objectives.parts.arguments import check_range, check_shapes, needs_vit
from unlabeled.objectives.parts.masks import Masks, block_masks, of_this_process
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.signs import TARGETS_ALIKE, spread_over_images


@full_precision
def data2vec_loss(student: Tensor, teacher: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Returns the squared error of hidden patches: the sum over a patch's values, divided by the root of their number.

    arXiv:2202.03555, section 3.3, as fairseq has it: with ``beta`` above 0 the smooth L1 distance instead of squares.
    The mean over hidden patches is over all processes: if they hold unequal numbers of them, local values are weighted
    such that their mean over the processes is the value of one process with the joined batch.

    Args:
        student: [B, L, D].
        teacher: [B, L, D], from :func:`averaged_targets`; get no gradient.
        mask: [B, L], true or 1 where hidden.
        beta: below it a difference counts by its square; 0 for squares alone.

    Returns:
        Scalar.

    Raises:
        UserError: shapes that do not fit together, or a ``beta`` below 0.
    """
    named = {"student": (student, "BLD"), "teacher": (teacher, "BLD"), "mask": (mask, "BL")}
    width = check_shapes("data2vec_loss", named)["D"]
    check_range("data2vec_loss", at_least=True, beta=beta)
    if beta:
        errors = F.smooth_l1_loss(student, teacher.detach(), reduction="none", beta=beta)
    else:
        errors = (student - teacher.detach()).square()
    hidden = mask.to(errors.dtype)
    count = distributed.total(hidden.sum()) / distributed.world_size()
    return (errors.sum(2) / math.sqrt(width) * hidden).sum() / count


@full_precision
def averaged_targets(outputs: Sequence[Tensor], normalise: bool) -> Tensor:
    """Returns the mean of several blocks' outputs [B, L, D], each token normalised over its values if asked for."""
    mean = torch.stack(list(outputs)).mean(0)
    return F.layer_norm(mean, mean.shape[-1:]) if normalise else mean


class Data2Vec(Objective):
    """A ViT with a mask token in place of hidden patches, and a teacher, which sees all and follows it slowly.

    The teacher is a copy of the whole network; fairseq copies the blocks alone and gives them the trained patches. What
    is compared are the network's own outputs, without a head, as in fairseq. ``Output.features`` are the teacher's.

    Args:
        backbone: what is pretrained; must be one of the project's own ViTs.
        mask_ratio: share of the patches that is hidden, in blocks: :func:`~.parts.masks.block_masks`.
        least_block: share of the patches in the smallest block.
        averaged_blocks: how many of the last blocks the targets are the mean of.
        normalize_targets: whether each target is normalised over its values.
        beta: of :func:`data2vec_loss`.
        momentum, final_momentum: of the teacher, from the first step to the last along a line.
        evaluated: which network is evaluated and published, ``student`` or ``teacher``.

    Raises:
        UserError: another backbone, fewer blocks than are averaged, or a ratio that hides nothing or everything.
    """

    backbone: ViT

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: Between,
        least_block: SomeShare,
        averaged_blocks: Count,
        normalize_targets: bool,
        beta: Weight,
        momentum: Share,
        final_momentum: Share,
        evaluated: Literal["student", "teacher"],
    ) -> None:
        super().__init__()
        check_range("objective", most=1, at_least=True, momentum=momentum, final_momentum=final_momentum)
        if evaluated not in ("student", "teacher"):
            raise UserError(f"objective.evaluated={evaluated}: allowed are student and teacher")
        vit = needs_vit("data2vec", backbone)
        self.masked = round(mask_ratio * vit.num_patches)
        if not 0 < self.masked < vit.num_patches:
            raise UserError(
                f"objective.mask_ratio={mask_ratio} of {vit.num_patches} patches: some must be left, and some hidden"
            )
        if averaged_blocks > len(vit.blocks):
            raise UserError(
                f"objective.averaged_blocks={averaged_blocks}: backbone.depth={len(vit.blocks)} has no more than that"
            )
        self.least = max(1, round(least_block * vit.num_patches))
        if self.least > self.masked:
            raise UserError(
                f"objective.least_block={least_block}: a block has {self.least} patches or more, and"
                f" objective.mask_ratio={mask_ratio} hides {self.masked}: give a smaller block"
            )
        self.backbone = vit
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.num_features))
        # fairseq writes trunc_normal_(mask_emb, 0.02), a mean of 0.02 and a deviation of 1; BEiT's 0.02 is a deviation.
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.teacher_backbone = ema.without_drop_path(ema.frozen_copy(self.backbone))
        self.averaged_blocks, self.normalize_targets, self.beta = averaged_blocks, normalize_targets, beta
        self.momentum, self.final_momentum, self.evaluated = momentum, final_momentum, evaluated

    def product(self) -> Backbone:
        return self.teacher_backbone if self.evaluated == "teacher" else self.backbone

    def check(self, plan: Plan) -> None:
        """Refuses a second view, which data2vec would not use."""
        plan.needs_views(1, 1)

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"momentum": self._momentum_at(progress)}

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum, self.final_momentum, "linear")

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images = batch.views[0]
        mask = to_device(self._mask(progress, len(images)), images.device)
        tokens = self.backbone.tokens(images, replace=mask, token=self.mask_token)
        targets, features = self._teach(images)
        loss = data2vec_loss(tokens[:, self.backbone.prefix :], targets, mask, self.beta)
        spread = spread_over_images(F.layer_norm(targets.float(), targets.shape[-1:]))
        return Output(loss, features.detach(), {"target_std": spread}, targets=targets.flatten(0, 1))

    def _mask(self, progress: Progress, images: int) -> Tensor:
        """Returns the hidden patches of this process's images, bool [B, L] on the CPU."""

        def draw(count: int, generator: np.random.Generator) -> Masks:
            return block_masks(np.full(count, self.masked), self.backbone.grid, self.least, self.masked, generator)

        return torch.tensor(of_this_process(progress, 1, images, draw)[0])

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns targets [B, L, D] and features [B, D] of whole images."""
        outputs, tokens = self.teacher_backbone.outputs_and_tokens(images)
        patches = [each[:, self.backbone.prefix :] for each in outputs[-self.averaged_blocks :]]
        return averaged_targets(patches, self.normalize_targets), self.teacher_backbone.pool(tokens)

    def after_step(self, progress: Progress) -> None:
        """Updates θ_teacher ← m·θ_teacher + (1 − m)·θ_student with the weights after the step."""
        ema.update(self.teacher_backbone, self.backbone, self._momentum_at(progress))

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return ((self.teacher_backbone, self.backbone),)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds how much targets differ between images."""
        return (TARGETS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns 0: equal targets are predicted without an error."""
        return 0.0

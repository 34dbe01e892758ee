"""DINOv2: iBOT with heads of its own for patches, codes instead of centres if wanted, and features that spread out.

Oquab et al. 2023, arXiv:2304.07193. Official code: github.com/facebookresearch/dinov2 (train/ssl_meta_arch.py, loss/).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval
from numpy.random import Generator
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.backbones.vit import ViT
from unlabeled.core.ranges import (
    AtLeastTwo,
    Channels,
    Count,
    Epochs,
    Layers,
    Share,
    ShareSpan,
    SomeShare,
    Temperature,
    Weight,
)
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema, masks
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.clipping import clip_parts
from unlabeled.objectives.parts.codes import sinkhorn
from unlabeled.objectives.parts.crops import check_large_first
from unlabeled.objectives.parts.distillation import (
    by_step,
    centred,
    drop_gradients,
    loss_of_pairs,
    loss_of_rows,
    moved_by_rows,
    moved_center,
    one_prototype_for_all,
    patch_metrics,
    target_metrics,
    uniform_outputs,
)
from unlabeled.objectives.parts.heads import DINOHead
from unlabeled.objectives.parts.masked_crops import (
    MaskedPatches,
    large_and_small,
    masked_patches,
    needs_class_token,
    student_tokens,
)
from unlabeled.objectives.parts.precision import full_precision

SINKHORN_ITERATIONS = 3  # dinov2/loss, sinkhorn_knopp_teacher
Centering = Literal["centering", "sinkhorn"]


@full_precision
def koleo(features: Tensor) -> Tensor:
    """Returns −mean ln(‖x − x_NN‖ + 1e-8) of unit rows: features of different images are to be far apart.

    The Kozachenko–Leonenko estimator of entropy (Sablayrolles et al. 2018, arXiv:1806.03198, eq. 2); x_NN is the row of
    the largest cosine with x, of this process (loss/koleo_loss.py).

    Args:
        features: [B, D], B at least 2, not normalised.

    Returns:
        Scalar; −ln 2 for two opposite rows, 18 for equal ones.

    Raises:
        UserError: no matrix, or one row, which has no neighbour.
    """
    check_shapes("koleo", {"features": (features, "BD")})
    if len(features) < 2:
        raise UserError("koleo: one row of features has no neighbour: give at least 2")
    rows = F.normalize(features, dim=1, eps=1e-8)
    nearest = (rows @ rows.T).detach().fill_diagonal_(-2).argmax(1)  # -1 officially, as of an opposite row
    distances = F.pairwise_distance(rows, rows[nearest], eps=1e-8)
    return -(distances + 1e-8).log().mean()


class DINOv2(Objective):
    """Student and teacher with :class:`DINOHead`; the teacher, in evaluation mode, is what is published.

    Views of the first view's size are large: the teacher sees them whole, half of them are masked for the student. The
    loss of class tokens is the mean over all pairs of a large crop of the teacher and another crop of the student, as
    the official sums of small and large crops over their common number of terms give it; an image's masked patches are
    averaged first, then images and large crops.

    Args:
        backbone: what is pretrained, a ViT with a class token; officially with ``layer_scale`` and drop path.
        prototypes: K, outputs of the head of class tokens.
        hidden_dim, bottleneck_dim, head_layers: of the heads; see :class:`DINOHead`. Prototypes' lengths are trained.
        patch_prototypes: outputs of a head for patches alone; None: one head for both.
        patch_bottleneck_dim: of that head; None: ``bottleneck_dim``.
        centering: ``centering`` subtracts moving averages of the teacher's outputs, ``sinkhorn`` assigns all prototypes
            equally often (:func:`~unlabeled.objectives.parts.codes.sinkhorn`).
        student_temperature: τ_s.
        first_teacher_temperature, teacher_temperature: τ_t, linear from step to step over ``temperature_epochs``.
        temperature_epochs: how many epochs it takes.
        center_momentum: of both centres.
        class_weight, patch_weight, koleo_weight: of the three losses; that of :func:`koleo` is summed over large crops.
        group_images: the global batch is made of groups of so many images, officially those of one GPU; more than the
            batch has: one group. The nearest features are looked for among them.
        masked_share: exactly so many of the large crops of a group are masked.
        mask_ratio: their ratios are spread over this span.
        mask_block: patches of the smallest block.
        momentum, final_momentum: of the teacher, from the first step to the last by half a cosine.
        freeze_last_layer_epochs: the prototypes keep their initial values until then.
        clip_norm: largest norm of the gradient of backbone and of each head; None: no limit.
        patch_embed_rate: factor on the learning rate of the patches' projection.

    Raises:
        UserError: an argument that cannot work, or a backbone that is no ViT with a class token.
    """

    backbone: ViT
    center: Tensor  # [K], of class tokens
    patch_center: Tensor  # [K], or [patch_prototypes]

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Channels,
        hidden_dim: Channels,
        bottleneck_dim: Channels,
        head_layers: Layers,
        patch_prototypes: Channels | None,
        patch_bottleneck_dim: Channels | None,
        centering: Centering,
        student_temperature: Temperature,
        first_teacher_temperature: Temperature,
        teacher_temperature: Temperature,
        temperature_epochs: Epochs,
        center_momentum: Share,
        class_weight: Weight,
        patch_weight: Weight,
        koleo_weight: Weight,
        group_images: AtLeastTwo,
        masked_share: SomeShare,
        mask_ratio: ShareSpan,
        mask_block: Count,
        momentum: Share,
        final_momentum: Share,
        freeze_last_layer_epochs: Epochs,
        clip_norm: Annotated[float, Interval(gt=0, le=1e6)] | None,
        patch_embed_rate: Weight,
    ) -> None:
        super().__init__()
        shares = {"center_momentum": center_momentum, "momentum": momentum, "final_momentum": final_momentum}
        check_range("objective", most=1, at_least=True, **shares, masked_share=masked_share)
        self.backbone = needs_class_token(backbone, "dinov2")
        width = (backbone.num_features,)
        self.projector = DINOHead(*width, prototypes, hidden_dim, bottleneck_dim, head_layers, norm_last_layer=False)
        self.patch_projector = _patch_head(
            *width, patch_prototypes, hidden_dim, patch_bottleneck_dim, bottleneck_dim, head_layers
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, *width))
        self.teacher_backbone = ema.frozen_copy(self.backbone).eval()
        self.teacher_projector = ema.frozen_copy(self.projector).eval()
        self.teacher_patch_projector = ema.frozen_copy(self.patch_projector).eval() if self.patch_projector else None
        self.register_buffer("center", torch.zeros(prototypes))
        self.register_buffer("patch_center", torch.zeros(patch_prototypes or prototypes))
        self.centering, self.student_temperature = centering, student_temperature
        self.temperatures = (first_teacher_temperature, teacher_temperature, temperature_epochs)
        self.center_momentum, self.momentum, self.final_momentum = center_momentum, momentum, final_momentum
        self.class_weight, self.patch_weight, self.koleo_weight = class_weight, patch_weight, koleo_weight
        self.group_images, self.masked_share = group_images, masked_share
        self.mask_ratio, self.mask_block = mask_ratio, mask_block
        self.freeze_last_layer_epochs, self.clip_norm = freeze_last_layer_epochs, clip_norm
        self.patch_embed_rate = patch_embed_rate

    def train(self, mode: bool = True) -> "DINOv2":
        """Sets the mode, but for the teacher, which is always in evaluation mode."""
        super().train(mode)
        for teacher, _ in self.teacher_student_pairs():
            teacher.eval()
        return self

    def product(self) -> Backbone:
        return self.teacher_backbone

    def check(self, plan: Plan) -> None:
        check_large_first(plan)
        group = min(self.group_images, plan.batch_size)
        if plan.batch_size % group or group < 2:
            raise UserError(
                f"objective.group_images={self.group_images}: batch_size={plan.batch_size} is not made of groups of so"
                " many images: give a divisor of it above 1"
            )

    def lr_factors(self) -> Mapping[str, float | Literal["constant"]]:
        projection = self.backbone.patch_embed.named_parameters(prefix="backbone.patch_embed")
        return {name: self.patch_embed_rate for name, each in projection if each.requires_grad}

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {
            "momentum": self._momentum_at(progress),
            "temperature": self.student_temperature,
            "teacher_temperature": by_step(progress, *self.temperatures),
            "prototypes_trained": float(self._trains_prototypes(progress)),
        }

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum, self.final_momentum)

    def _trains_prototypes(self, progress: Progress) -> bool:
        return progress.epoch >= self.freeze_last_layer_epochs

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Computes the three losses with the present centres, then moves these."""
        large, small = large_and_small(batch.views)
        masked = self._masks(progress, large)
        classes, patches = student_tokens(self.backbone, self.mask_token, large, small, masked)
        spread = self._spread(classes[: len(large) * len(large[0])].chunk(len(large)))
        classes, patches = self._heads(classes, patches)
        features, teacher, teacher_patches = self._teach(large, masked)
        temperature = by_step(progress, *self.temperatures)
        targets = self._targets(teacher, self.center, temperature).chunk(len(large))
        patch_targets = self._targets(teacher_patches, self.patch_center, temperature, masked.weights > 0)
        class_loss = loss_of_pairs(classes.chunk(len(batch.views)), targets, self.student_temperature)
        patch_loss = loss_of_rows(patches, patch_targets, masked.weights, self.student_temperature)
        if self.training and self.centering == "centering":
            self.center.copy_(moved_center(self.center, teacher, self.center_momentum))
            counted = masked.weights > 0
            self.patch_center.copy_(moved_by_rows(self.patch_center, teacher_patches, counted, self.center_momentum))
        loss = self.class_weight * class_loss + self.patch_weight * patch_loss + self.koleo_weight * spread
        metrics = {"class_loss": class_loss.detach(), "koleo_loss": spread.detach() / len(large)}
        metrics |= target_metrics(targets[0]) | patch_metrics(patch_loss, patch_targets, masked.weights)
        return Output(loss, features.chunk(len(large))[0], metrics, targets=teacher.chunk(len(large))[0])

    def _masks(self, progress: Progress, large: Sequence[Tensor]) -> MaskedPatches:
        crops, images, grid = len(large), len(large[0]), large[0].shape[-1] // self.backbone.patch_size
        group = min(self.group_images, images * distributed.world_size())
        spread = (crops * group, self.masked_share, *self.mask_ratio)

        def draw(count: int, generator: Generator) -> masks.Masks:
            groups = range(count // (crops * group))
            ratios = np.stack([masks.ratios_in_steps(*spread, generator).reshape(crops, group) for _ in groups], 1)
            return masks.block_masks(np.floor(ratios.ravel() * grid**2), grid, self.mask_block, grid**2 / 2, generator)

        drawn = masks.of_this_process(progress, crops, images, draw)
        whole, rest = divmod(images, group)
        most = whole * masks.most_in_steps(*spread, grid**2) + crops * rest * int(self.mask_ratio[1] * grid**2)
        return masked_patches(drawn, most, large[0].device, self.mask_token.dtype)

    def _spread(self, classes: Sequence[Tensor]) -> Tensor:
        """Returns the sum over large crops of :func:`koleo` in groups of the global batch, of whole crops [B, D]."""
        if not self.koleo_weight:
            return classes[0].new_zeros(())
        group = min(self.group_images, len(classes[0]) * distributed.world_size())
        if len(classes[0]) % group:  # a group lies on several processes
            classes = [distributed.gather(each) for each in classes]
        losses = [torch.stack([koleo(each) for each in crop.chunk(len(crop) // group)]).mean() for crop in classes]
        return torch.stack(losses).sum()

    def _heads(self, classes: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        if self.patch_projector is not None:
            return self.projector(classes), self.patch_projector(patches)
        outputs = self.projector(torch.cat([classes, patches]))
        return outputs[: len(classes)], outputs[len(classes) :]

    @torch.no_grad()
    def _teach(self, views: Sequence[Tensor], masked: MaskedPatches) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the teacher's features of large crops, and its raw outputs of class tokens and masked patches."""
        tokens = self.teacher_backbone.tokens(torch.cat(list(views)))
        classes, patches = tokens[:, 0], tokens[:, self.teacher_backbone.prefix :].flatten(0, 1)
        patches = patches.index_select(0, masked.rows)
        features = self.teacher_backbone.pool(tokens)
        if self.teacher_patch_projector is not None:
            return features, self.teacher_projector(classes), self.teacher_patch_projector(patches)
        outputs = self.teacher_projector(torch.cat([classes, patches]))
        return features, outputs[: len(classes)], outputs[len(classes) :]

    def _targets(self, teacher: Tensor, center: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        if self.centering == "sinkhorn":
            if counted is not None:
                counted = counted | ~counted.any()  # none: all, of weight 0, or their codes would be no numbers
            return sinkhorn(teacher, temperature, SINKHORN_ITERATIONS, counted)
        return centred(teacher, center, temperature)

    def after_backward(self, progress: Progress) -> None:
        """Limits the gradients of backbone and heads, each together; then removes those of frozen prototypes.

        Officially the rate of frozen prototypes is 0 and AdamW's moments go on; here these begin when they are trained.
        """
        heads = [head for head in (self.projector, self.patch_projector) if head is not None]
        if self.clip_norm is not None:
            backbone = [*self.backbone.parameters(), self.mask_token]
            clip_parts([backbone, *(list(head.parameters()) for head in heads)], self.clip_norm)
        if not self._trains_prototypes(progress):
            drop_gradients(*(head.last_layer for head in heads))

    def after_step(self, progress: Progress) -> None:
        """Updates θ_teacher ← m·θ_teacher + (1 − m)·θ_student with the weights after the step."""
        momentum = self._momentum_at(progress)
        for teacher, student in self.teacher_student_pairs():
            ema.update(teacher, student, momentum)

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.teacher_backbone, self.backbone)]
        pairs.append((self.teacher_projector, self.projector))
        if self.patch_projector is not None and self.teacher_patch_projector is not None:
            pairs.append((self.teacher_patch_projector, self.patch_projector))
        return pairs

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        bounds = [one_prototype_for_all(), uniform_outputs(len(self.center))]
        if self.patch_weight:
            bounds.append(one_prototype_for_all(patches=True))
            bounds.append(uniform_outputs(len(self.patch_center), patches=True))
        return bounds

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the loss of uniform outputs of equal features; :func:`koleo` of these is 18 for each large crop."""
        patches = self.patch_weight * self.masked_share * math.log(len(self.patch_center))
        width = self.backbone.num_features
        equal = -math.log(1e-8 * math.sqrt(width) + 1e-8) * sum(size == plan.views[0] for size in plan.views)
        return self.class_weight * math.log(len(self.center)) + patches + self.koleo_weight * equal


def _patch_head(
    width: int, prototypes: int | None, hidden: int, bottleneck: int | None, of_classes: int, layers: int
) -> DINOHead | None:
    if prototypes is not None:
        return DINOHead(width, prototypes, hidden, bottleneck or of_classes, layers, norm_last_layer=False)
    if bottleneck is not None:
        raise UserError(
            f"objective.patch_bottleneck_dim={bottleneck} is of a head for patches alone, and there is none: give"
            " objective.patch_prototypes=…, or null"
        )
    return None

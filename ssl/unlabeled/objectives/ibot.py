"""iBOT: DINO, whose student also says what its teacher says of the patches that it does not see.

Zhou et al. 2021, arXiv:2111.07832. Official code: github.com/bytedance/ibot (main_ibot.py).
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from numpy.random import Generator
from torch import Tensor, nn

from unlabeled.backbones.vit import ViT
from unlabeled.core.ranges import Channels, Epochs, Layers, Share, ShareSpan, SomeShare, Temperature, Weight
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema, masks
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.clipping import EachClipped
from unlabeled.objectives.parts.crops import check_large_first
from unlabeled.objectives.parts.distillation import (
    by_epoch,
    centred,
    dino_loss,
    drop_gradients,
    loss_of_rows,
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
    patch_weights,
    student_tokens,
)
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def masked_patch_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask: Sequence[Tensor],
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Returns the cross-entropy of the student's softmax at masked patches with the teacher's at the same patches.

    arXiv:2111.07832, eq. 2: the mean over an image's masked patches, then over images and crops. An image without a
    masked patch counts 0.

    Args:
        student: [B, n, K] for each large crop, raw outputs of a student that does not see the masked patches.
        teacher: the same of the teacher, which sees them; get no gradient.
        mask: bool [B, n] for each crop.
        center: [K], of the teacher's outputs of patches.
        student_temperature, teacher_temperature: above 0.

    Returns:
        Scalar; ln K times the share of images with a masked patch when both are uniform.

    Raises:
        UserError: shapes that do not fit together, no crop, other numbers of crops, or a temperature not above 0.
    """
    if not len(student) == len(teacher) == len(mask) > 0:
        raise UserError(
            f"masked_patch_loss: {len(student)}, {len(teacher)} and {len(mask)} crops: give as many of each"
        )
    named = {f"student[{n}]": (each, "BNK") for n, each in enumerate(student)}
    named |= {f"teacher[{n}]": (each, "BNK") for n, each in enumerate(teacher)}
    named |= {f"mask[{n}]": (each, "BN") for n, each in enumerate(mask)}
    check_shapes("masked_patch_loss", {**named, "center": (center, "K")})
    check_range("masked_patch_loss", student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    outputs = [torch.stack(list(each)).flatten(0, 2) for each in (student, teacher)]
    weights = patch_weights(torch.stack(list(mask)).to(outputs[0].dtype)).flatten()
    return loss_of_rows(outputs[0], centred(outputs[1], center, teacher_temperature), weights, student_temperature)


class IBOT(Objective):
    """Student and teacher with one :class:`DINOHead` for class tokens and patches; the teacher is what is published.

    Views of the first view's size are large: the teacher sees them whole, the student with blocks of patches masked by
    a learned token. Small views are for the student's class token alone. The teacher follows after each step, with the
    new weights, and leaves out no paths.

    Args:
        backbone: what is pretrained, a ViT with a class token.
        prototypes: K, outputs of the head.
        hidden_dim, bottleneck_dim, head_layers, norm_last_layer: see :class:`DINOHead`.
        student_temperature: τ_s.
        first_teacher_temperature, teacher_temperature: τ_t of class tokens, in the first epoch and from
            ``temperature_epochs`` on; linear between, one value for each epoch.
        first_patch_temperature, patch_temperature: the same of patches.
        temperature_epochs: how many epochs it takes.
        center_momentum: of both centres.
        class_weight, patch_weight: of the two losses.
        masked_share: probability with which a large crop of an image is masked.
        mask_ratio: least and largest share of its patches, uniform between; blocks as :func:`masks.block_masks` draws.
        momentum, final_momentum: of the teacher, from the first step to the last by half a cosine.
        freeze_last_layer_epochs: the prototypes keep their initial values until then.
        clip_norm: largest norm of the gradient of each single tensor; None: no limit.

    Raises:
        UserError: an argument that cannot work, or a backbone that is no ViT with a class token.
    """

    backbone: ViT
    center: Tensor  # [K], of class tokens
    patch_center: Tensor  # [K]

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Channels,
        hidden_dim: Channels,
        bottleneck_dim: Channels,
        head_layers: Layers,
        norm_last_layer: bool,
        student_temperature: Temperature,
        first_teacher_temperature: Temperature,
        teacher_temperature: Temperature,
        first_patch_temperature: Temperature,
        patch_temperature: Temperature,
        temperature_epochs: Epochs,
        center_momentum: Share,
        class_weight: Weight,
        patch_weight: Weight,
        masked_share: SomeShare,
        mask_ratio: ShareSpan,
        momentum: Share,
        final_momentum: Share,
        freeze_last_layer_epochs: Epochs,
        clip_norm: Annotated[float, Interval(gt=0, le=1e6)] | None,
    ) -> None:
        super().__init__()
        shares = {"center_momentum": center_momentum, "momentum": momentum, "final_momentum": final_momentum}
        check_range("objective", most=1, at_least=True, **shares, masked_share=masked_share)
        self.backbone = needs_class_token(backbone, "ibot")
        widths = (backbone.num_features, prototypes, hidden_dim, bottleneck_dim, head_layers)
        self.projector = DINOHead(*widths, norm_last_layer=norm_last_layer)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.num_features))
        self.teacher_backbone = ema.without_drop_path(ema.frozen_copy(self.backbone))
        self.teacher_projector = ema.frozen_copy(self.projector)
        self.register_buffer("center", torch.zeros(prototypes))
        self.register_buffer("patch_center", torch.zeros(prototypes))
        self.student_temperature, self.temperature_epochs = student_temperature, temperature_epochs
        self.temperatures = (first_teacher_temperature, teacher_temperature)
        self.patch_temperatures = (first_patch_temperature, patch_temperature)
        self.center_momentum, self.momentum, self.final_momentum = center_momentum, momentum, final_momentum
        self.class_weight, self.patch_weight = class_weight, patch_weight
        self.masked_share, self.mask_ratio = masked_share, mask_ratio
        self.freeze_last_layer_epochs, self.clip_norm = freeze_last_layer_epochs, clip_norm
        self._clip = EachClipped()

    def product(self) -> Backbone:
        return self.teacher_backbone

    def check(self, plan: Plan) -> None:
        check_large_first(plan)

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {
            "momentum": self._momentum_at(progress),
            "temperature": self.student_temperature,
            "teacher_temperature": by_epoch(progress, *self.temperatures, self.temperature_epochs),
            "patch_temperature": by_epoch(progress, *self.patch_temperatures, self.temperature_epochs),
            "prototypes_trained": float(self._trains_prototypes(progress)),
        }

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum, self.final_momentum)

    def _trains_prototypes(self, progress: Progress) -> bool:
        return progress.epoch >= self.freeze_last_layer_epochs

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Computes both losses with the present centres, then moves these."""
        large, small = large_and_small(batch.views)
        masked = self._masks(progress, large)
        classes, patches = self._student(large, small, masked)
        features, teacher, teacher_patches = self._teach(large)
        outputs, targets = classes.chunk(len(batch.views)), teacher.chunk(len(large))
        temperature = by_epoch(progress, *self.temperatures, self.temperature_epochs)
        class_loss = dino_loss(outputs, targets, self.center, self.student_temperature, temperature)
        temperature2 = by_epoch(progress, *self.patch_temperatures, self.temperature_epochs)
        patch_targets = centred(teacher_patches.index_select(0, masked.rows), self.patch_center, temperature2)
        patch_loss = loss_of_rows(patches, patch_targets, masked.weights, self.student_temperature)
        metrics = {"class_loss": class_loss.detach()}
        metrics |= target_metrics(centred(targets[0], self.center, temperature))
        metrics |= patch_metrics(patch_loss, patch_targets, masked.weights)
        if self.training:
            self.center.copy_(moved_center(self.center, teacher, self.center_momentum))
            self.patch_center.copy_(moved_center(self.patch_center, teacher_patches, self.center_momentum))
        loss = self.class_weight * class_loss + self.patch_weight * patch_loss
        return Output(loss, features.chunk(len(large))[0], metrics, targets=targets[0])

    def _masks(self, progress: Progress, large: Sequence[Tensor]) -> MaskedPatches:
        grid = large[0].shape[-1] // self.backbone.patch_size
        least = max(1, (grid // 3) ** 2)  # officially 0 below three patches, which no block has

        def draw(count: int, generator: Generator) -> masks.Masks:
            ratios = masks.ratios_at_random(count, self.masked_share, *self.mask_ratio, generator)
            return masks.block_masks(ratios * grid**2, grid, least, math.inf, generator)

        drawn = masks.of_this_process(progress, len(large), len(large[0]), draw)
        most = len(large) * len(large[0]) * int(self.mask_ratio[1] * grid**2)
        return masked_patches(drawn, most, large[0].device, self.mask_token.dtype)

    def _student(
        self, large: Sequence[Tensor], small: Sequence[Tensor], masked: MaskedPatches
    ) -> tuple[Tensor, Tensor]:
        """Returns raw outputs of the class tokens of all crops, and of the masked patches of the large ones."""
        classes, patches = student_tokens(self.backbone, self.mask_token, large, small, masked)
        outputs = self.projector(torch.cat([classes, patches]))
        return outputs[: len(classes)], outputs[len(classes) :]

    @torch.no_grad()
    def _teach(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the teacher's features of large crops, and its raw outputs of class tokens and of all patches."""
        tokens = self.teacher_backbone.tokens(torch.cat(list(views)))
        classes, patches = tokens[:, 0], tokens[:, self.teacher_backbone.prefix :].flatten(0, 1)
        outputs = self.teacher_projector(torch.cat([classes, patches]))
        return self.teacher_backbone.pool(tokens), outputs[: len(classes)], outputs[len(classes) :]

    def after_backward(self, progress: Progress) -> None:
        """Limits each tensor's gradient, then removes those of the prototypes while they are frozen."""
        gradients = [each.grad for each in self.parameters() if each.grad is not None]
        if self.clip_norm is not None and gradients:
            self._clip(gradients, self.clip_norm)
        if not self._trains_prototypes(progress):
            drop_gradients(self.projector.last_layer)

    def after_step(self, progress: Progress) -> None:
        """Updates θ_teacher ← m·θ_teacher + (1 − m)·θ_student with the weights after the step."""
        momentum = self._momentum_at(progress)
        ema.update(self.teacher_backbone, self.backbone, momentum)
        ema.update(self.teacher_projector, self.projector, momentum)

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return (self.teacher_backbone, self.backbone), (self.teacher_projector, self.projector)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        bounds = [one_prototype_for_all(), uniform_outputs(len(self.center))]
        if self.patch_weight:
            bounds.append(one_prototype_for_all(patches=True))
            bounds.append(uniform_outputs(len(self.center), patches=True))
        return bounds

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the loss of uniform outputs in a batch of which the expected share is masked."""
        return (self.class_weight + self.patch_weight * self.masked_share) * math.log(len(self.center))

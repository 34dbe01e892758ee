"""DINO: crops of an image predict the output of a slowly following teacher for its large crops, centred and sharpened.

Caron et al. 2021, arXiv:2104.14294. Official code: github.com/facebookresearch/dino (main_dino.py).
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from unlabeled.core.ranges import Channels, Epochs, Layers, Share, Temperature
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema
from unlabeled.objectives.parts.arguments import check_range
from unlabeled.objectives.parts.clipping import EachClipped
from unlabeled.objectives.parts.crops import by_resolution, check_large_first
from unlabeled.objectives.parts.distillation import (
    by_epoch,
    centred,
    drop_gradients,
    one_prototype_for_all,
    target_metrics,
)
from unlabeled.objectives.parts.distillation import dino_loss as dino_loss
from unlabeled.objectives.parts.distillation import moved_center as moved_center
from unlabeled.objectives.parts.heads import DINOHead as DINOHead


class DINO(Objective):
    """Student and teacher with :class:`DINOHead`; the teacher is what is evaluated and published.

    Views of the first view's size are large: the teacher sees them alone. The student sees all, one backbone forward
    per resolution and one head forward over all crops. The teacher follows after each step, with the new weights; it
    leaves out no paths, and its BatchNorm is in train mode with statistics of its own.

    Args:
        backbone: the network to pretrain.
        prototypes: K, outputs of the head.
        hidden_dim, bottleneck_dim, head_layers, head_batch_norm, norm_last_layer: see :class:`DINOHead`.
        student_temperature: τ_s.
        first_teacher_temperature, teacher_temperature: τ_t of the first epoch, and from ``temperature_epochs`` on;
            linear between, one value for each epoch.
        temperature_epochs: how many epochs it takes.
        center_momentum: of the centre.
        momentum, final_momentum: of the teacher, from the first step to the last by half a cosine.
        freeze_last_layer_epochs: the prototypes keep their initial values until then.
        clip_norm: largest norm of the gradient of each single tensor; None: no limit.

    Raises:
        UserError: an argument that cannot work.
    """

    center: Tensor  # [K]

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Channels,
        hidden_dim: Channels,
        bottleneck_dim: Channels,
        head_layers: Layers,
        head_batch_norm: bool,
        norm_last_layer: bool,
        student_temperature: Temperature,
        first_teacher_temperature: Temperature,
        teacher_temperature: Temperature,
        temperature_epochs: Epochs,
        center_momentum: Share,
        momentum: Share,
        final_momentum: Share,
        freeze_last_layer_epochs: Epochs,
        clip_norm: Annotated[float, Interval(gt=0, le=1e6)] | None,
    ) -> None:
        super().__init__()
        shares = {"center_momentum": center_momentum, "momentum": momentum, "final_momentum": final_momentum}
        check_range("objective", most=1, at_least=True, **shares)
        widths = (backbone.num_features, prototypes, hidden_dim, bottleneck_dim, head_layers)
        self.backbone = backbone
        self.projector = DINOHead(*widths, head_batch_norm, norm_last_layer)
        self.teacher_backbone = ema.without_drop_path(ema.frozen_copy(self.backbone))
        self.teacher_projector = ema.frozen_copy(self.projector)
        self.register_buffer("center", torch.zeros(prototypes))
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.first_teacher_temperature, self.temperature_epochs = first_teacher_temperature, temperature_epochs
        self.center_momentum, self.momentum, self.final_momentum = center_momentum, momentum, final_momentum
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
            "teacher_temperature": self._teacher_temperature_at(progress),
            "prototypes_trained": float(self._trains_prototypes(progress)),
        }

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum, self.final_momentum)

    def _teacher_temperature_at(self, progress: Progress) -> float:
        return by_epoch(progress, self.first_teacher_temperature, self.teacher_temperature, self.temperature_epochs)

    def _trains_prototypes(self, progress: Progress) -> bool:
        return progress.epoch >= self.freeze_last_layer_epochs

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Computes the loss with the present centre, then moves it."""
        views, temperature = batch.views, self._teacher_temperature_at(progress)
        large = [view for view in views if view.shape == views[0].shape]
        student = self.projector(by_resolution(self.backbone, views))
        features, teacher = self._teach(large)
        targets = teacher.chunk(len(large))
        loss = dino_loss(student.chunk(len(views)), targets, self.center, self.student_temperature, temperature)
        metrics = target_metrics(centred(targets[0], self.center, temperature))
        if self.training:
            self.center.copy_(moved_center(self.center, teacher, self.center_momentum))
        return Output(loss, features.chunk(len(large))[0], metrics, targets=targets[0])

    @torch.no_grad()
    def _teach(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the teacher's features and raw outputs of the large crops."""
        features = by_resolution(self.teacher_backbone, views)
        return features, self.teacher_projector(features)

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
        return (one_prototype_for_all(),)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln K, of uniform outputs."""
        return math.log(len(self.center))

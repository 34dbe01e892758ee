"""BYOL: a network predicts, from one view, what a slowly following copy of it makes of the other; no negatives.

Grill et al. 2020, arXiv:2006.07733. Official code: github.com/google-deepmind/deepmind-research, byol/.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.core.ranges import Channels, Share
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.heads import byol_mlp
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.signs import VIEWS_ALIKE


@full_precision
def byol_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Returns (2 − 2cos(p1, z2)) + (2 − 2cos(p2, z1)), mean over the local images (arXiv:2006.07733, eq. 2).

    Args:
        p1, p2: [B, D], the online network's predictions of the two views, unnormalised.
        z1, z2: [B, D], the target network's projections of them, unnormalised; get no gradient.

    Returns:
        Scalar, from 0 to 8; 0 when all embeddings are equal.

    Raises:
        UserError: shapes that do not fit together.
    """
    check_shapes("byol_loss", {"p1": (p1, "BD"), "p2": (p2, "BD"), "z1": (z1, "BD"), "z2": (z2, "BD")})
    return _one_way(p1, z2) + _one_way(p2, z1)


def _one_way(p: Tensor, z: Tensor) -> Tensor:
    """Returns 2 − 2cos; a length below 1e-6 counts as 1e-6, as officially (byol/utils/helpers.py, l2_normalize)."""
    return 2 - 2 * (F.normalize(p, dim=1, eps=1e-6) * F.normalize(z.detach(), dim=1, eps=1e-6)).sum(1).mean()


class BYOL(Objective):
    """Online network with a predictor, and a target network that follows it after each step, with the new weights.

    The official code uses BatchNorm over the global batch: trainer.sync_batchnorm=true. The target network is in train
    mode and has BatchNorm statistics of its own.

    Args:
        backbone: the network to pretrain.
        hidden_dim: width inside projector and predictor.
        projection_dim: width of the embeddings, D.
        last_bias: whether projector and predictor end in a bias; officially they do not.
        momentum, final_momentum: of the target network, from the first step to the last by half a cosine.
        evaluated: which network is evaluated and published, ``online`` or ``target``.

    Raises:
        UserError: an argument that cannot work.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden_dim: Channels,
        projection_dim: Channels,
        last_bias: bool,
        momentum: Share,
        final_momentum: Share,
        evaluated: Literal["online", "target"],
    ) -> None:
        super().__init__()
        check_range("objective", most=1, at_least=True, momentum=momentum, final_momentum=final_momentum)
        if evaluated not in ("online", "target"):
            raise UserError(f"objective.evaluated={evaluated}: allowed are online and target")
        self.backbone = backbone
        self.projector: nn.Module = byol_mlp(backbone.num_features, hidden_dim, projection_dim, last_bias)
        self.predictor: nn.Module = byol_mlp(projection_dim, hidden_dim, projection_dim, last_bias)
        self.target_backbone = ema.frozen_copy(self.backbone)
        self.target_projector: nn.Module = ema.frozen_copy(self.projector)
        self.momentum, self.final_momentum, self.evaluated = momentum, final_momentum, evaluated

    def product(self) -> Backbone:
        return self.target_backbone if self.evaluated == "target" else self.backbone

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"momentum": self._momentum_at(progress)}

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum, self.final_momentum)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward per view, so that BatchNorm sees views separately, as in the official code."""
        x1, x2 = batch.views
        features = self.backbone(x1)
        p1, p2 = self._predict(features), self._predict(self.backbone(x2))
        z1, z2 = self._targets(x1), self._targets(x2)
        loss = byol_loss(p1, p2, z1, z2)
        similarity = F.cosine_similarity(p1.detach().float(), z2.float()).mean()
        return Output(loss, features.detach(), {"positive_similarity": similarity}, p1, z2)

    def _predict(self, features: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(features))
        return prediction

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        projection: Tensor = self.target_projector(self.target_backbone(images))
        return projection

    def after_step(self, progress: Progress) -> None:
        """Updates θ_target ← m·θ_target + (1 − m)·θ_online with the weights after the step."""
        momentum = self._momentum_at(progress)
        ema.update(self.target_backbone, self.backbone, momentum)
        ema.update(self.target_projector, self.projector, momentum)

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return (self.target_backbone, self.backbone), (self.target_projector, self.projector)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (VIEWS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns 0."""
        return 0.0

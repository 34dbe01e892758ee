"""SimSiam: each view predicts the other's projection by the same network, whose gradient is stopped there.

Chen and He 2020, arXiv:2011.10566. Official code: github.com/facebookresearch/simsiam.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.core.ranges import Channels, Layers
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_shapes
from unlabeled.objectives.parts.heads import mlp, projector_widths
from unlabeled.objectives.parts.moments import column_variances
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.signs import VIEWS_ALIKE


@full_precision
def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Returns −½ (cos(p1, z2) + cos(p2, z1)), mean over the local images (arXiv:2011.10566, eq. 4).

    Args:
        p1, p2: [B, D], predictions of the two views, unnormalised.
        z1, z2: [B, D], their projections, unnormalised; get no gradient.

    Returns:
        Scalar, from −1 to 1; −1 when all embeddings are equal.

    Raises:
        UserError: shapes that do not fit together.
    """
    check_shapes("simsiam_loss", {"p1": (p1, "BD"), "p2": (p2, "BD"), "z1": (z1, "BD"), "z2": (z2, "BD")})
    there, back = (F.cosine_similarity(p, z.detach(), dim=1).mean() for p, z in ((p1, z2), (p2, z1)))
    return -0.5 * (there + back)


class SimSiam(Objective):
    """Backbone, projector and a narrow predictor, trained with :func:`simsiam_loss`; no teacher.

    The official code uses BatchNorm over the global batch: trainer.sync_batchnorm=true.

    Args:
        backbone: the network to pretrain.
        projection_layers: depth of the projector: 3, or 2 for CIFAR-10 (section 4.7).
        hidden_dim: width inside the projector; officially that of the backbone.
        projection_dim: width of the embeddings, D.
        predictor_dim: width inside the predictor, which must be narrow: D / 4 in the paper.
        constant_predictor_rate: whether the predictor's learning rate stays at its peak (section 4.2).
        projection_affine: whether the BatchNorm at the projector's end has scale and bias; officially it has none.

    Raises:
        UserError: a projector without a layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        projection_layers: Layers,
        hidden_dim: Channels,
        projection_dim: Channels,
        predictor_dim: Channels,
        constant_predictor_rate: bool,
        projection_affine: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        widths = projector_widths(backbone.num_features, hidden_dim, projection_layers, projection_dim)
        # the official last layer has a bias that is not trained: the norm behind it takes it away
        self.projector: nn.Module = mlp(widths, last_norm="affine" if projection_affine else "parameter_free")
        self.predictor: nn.Module = mlp([projection_dim, predictor_dim, projection_dim], bias_last=True)
        self.constant_predictor_rate = constant_predictor_rate

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)

    def lr_factors(self) -> Mapping[str, float | Literal["constant"]]:
        if not self.constant_predictor_rate:
            return {}
        return {f"predictor.{name}": "constant" for name, _ in self.predictor.named_parameters()}

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward per view, so that BatchNorm sees views separately, as in the official code."""
        features = [self.backbone(view) for view in batch.views]
        z1, z2 = (self.projector(each) for each in features)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = simsiam_loss(p1, p2, z1, z2)
        similarity = F.cosine_similarity(p1.detach().float(), z2.detach().float()).mean()
        metrics = {"positive_similarity": similarity, "projection_std": _spread(z1.detach())}
        return Output(loss, features[0].detach(), metrics, p1, z2.detach())

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the spread of the projections: the loss is lowest at collapse, and so does not show it."""
        return (
            VIEWS_ALIKE,
            MetricBound(
                "projections-collapsed",
                "projection_std",
                0.1,
                float("inf"),
                "all images get the same projection",
                "check the stop-gradient and the predictor, keep the norm at the projector's end, lower optimizer.lr",
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns −1."""
        return -1.0


@full_precision
def _spread(z: Tensor) -> Tensor:
    """Returns √D times the deviation of the columns of all unit rows, their mean: 1 for even rows, 0 for equal ones."""
    deviations = column_variances(F.normalize(z, dim=1)).clamp(min=0).sqrt()
    return deviations.mean() * math.sqrt(z.shape[1])

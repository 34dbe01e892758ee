"""Barlow Twins: columns of the embeddings of two views are the same, and different columns are uncorrelated.

Zbontar et al. 2021, arXiv:2103.03230. Official code: github.com/facebookresearch/barlowtwins.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from unlabeled.core.ranges import Channels, Layers, Weight
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.heads import mlp, projector_widths
from unlabeled.objectives.parts.moments import column_variances, cross_covariance
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def barlow_twins_loss(z1: Tensor, z2: Tensor, off_diagonal_weight: float) -> Tensor:
    """Returns Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij², C being the correlation of the columns (arXiv:2103.03230, eq. 1).

    Columns are standardised over the global batch with the biased variance + 1e-5, as BatchNorm does it. On several
    GPUs the official gradient is 1 / processes of this one: its sum over processes has no backward.

    Args:
        z1, z2: [B, D], the two views of B images, unnormalised, the same B on every process.
        off_diagonal_weight: λ, at least 0.

    Returns:
        Scalar; D when all embeddings are equal.

    Raises:
        UserError: the views differ in shape, or a weight below 0.
    """
    check_shapes("barlow_twins_loss", {"z1": (z1, "BD"), "z2": (z2, "BD")})
    check_range("barlow_twins_loss", at_least=True, off_diagonal_weight=off_diagonal_weight)
    return _off_identity(cross_correlation(z1, z2), off_diagonal_weight)


@full_precision
def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """Returns C [D, D] of embeddings [B, D] over the global batch."""
    scales = [(column_variances(z) + 1e-5).rsqrt() for z in (z1, z2)]
    return cross_covariance(z1, z2) * scales[0][:, None] * scales[1]


def _off_identity(correlation: Tensor, off_diagonal_weight: float) -> Tensor:
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal_weight * off


class BarlowTwins(Objective):
    """Backbone and a wide projector, trained with :func:`barlow_twins_loss`; no teacher, no predictor.

    Args:
        backbone: the network to pretrain.
        projection_layers: depth of the projector.
        hidden_dim: width inside the projector.
        projection_dim: width of the embeddings, D.
        off_diagonal_weight: λ.
        scale: factor of the whole loss.
        bias_lr_factor: learning rate of biases and norms over that of the others.

    Raises:
        UserError: a projector without a layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        projection_layers: Layers,
        hidden_dim: Channels,
        projection_dim: Channels,
        off_diagonal_weight: Weight,
        scale: Annotated[float, Interval(gt=0, le=1e6)],
        bias_lr_factor: Annotated[float, Interval(gt=0, le=1000)],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        widths = projector_widths(backbone.num_features, hidden_dim, projection_layers, projection_dim)
        self.projector: nn.Module = mlp(widths)
        self.off_diagonal_weight, self.scale, self.bias_lr_factor = off_diagonal_weight, scale, bias_lr_factor

    def check(self, plan: Plan) -> None:
        """Requires two views, and two images, without which nothing is correlated."""
        plan.needs_views(2, 2)
        if plan.batch_size < 2:
            raise UserError(f"batch_size={plan.batch_size}: columns are compared over a batch: give 2 at least")

    def lr_factors(self) -> Mapping[str, float | Literal["constant"]]:
        if self.bias_lr_factor == 1:
            return {}
        return {name: self.bias_lr_factor for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward per view, so that BatchNorm sees views separately, as in the official code."""
        features = [self.backbone(view) for view in batch.views]
        z1, z2 = (self.projector(each) for each in features)
        correlation = cross_correlation(z1, z2)
        loss = self.scale * _off_identity(correlation, self.off_diagonal_weight)
        metrics = _metrics(correlation.detach())
        # without their graph: the loss normalises columns, not rows, whose length it may well depend on
        return Output(loss, features[0].detach(), metrics, z1.detach(), z2.detach())

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (
            MetricBound(
                "views-not-correlated",
                "diagonal_correlation",
                0.05,
                1.01,
                "two views of an image have nothing in common, or all images get the same embedding",
                "weaker views, and a look at optimizer.lr and its warm-up",
                lasting=True,
            ),
            MetricBound(
                "columns-alike",
                "off_diagonal_correlation",
                -1.0,
                0.5,
                "all columns of the embeddings say the same: the redundancy term is missing or too weak",
                "a larger objective.off_diagonal_weight, a wider objective.projection_dim, a lower optimizer.lr",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns D times the scale."""
        last = [module for module in self.projector.modules() if isinstance(module, nn.Linear)][-1]
        return self.scale * last.out_features


def _metrics(correlation: Tensor) -> dict[str, Tensor]:
    """Returns the mean of the diagonal, and the root mean square of all else."""
    width, diagonal = len(correlation), correlation.diagonal()
    off = (correlation.square().sum() - diagonal.square().sum()).clamp(min=0) / max(1, width * (width - 1))
    return {"diagonal_correlation": diagonal.mean(), "off_diagonal_correlation": torch.sqrt(off)}

"""VICReg: embeddings of two views are near, each column varies over the batch, and no two columns vary together.

Bardes, Ponce and LeCun 2021, arXiv:2105.04906. Official code: github.com/facebookresearch/vicreg.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Layers, Weight
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.heads import mlp, projector_widths
from unlabeled.objectives.parts.moments import cross_covariance
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def vicreg_loss(z1: Tensor, z2: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """Returns the weighted sum of three terms (arXiv:2105.04906, eq. 6, with the official factors).

    Invariance: the mean squared difference. Variance: mean over columns of relu(1 − √(var + 1e-4)), mean of both views.
    Covariance: Σ_{i≠j} cov_ij² / D, sum of both views. Variances and covariances are unbiased, over the global batch.

    Args:
        z1, z2: [B, D], the two views of B images, unnormalised, the same B on every process.
        invariance, variance, covariance: weights, at least 0.

    Returns:
        Scalar; 0.99 · variance when all embeddings are equal.

    Raises:
        UserError: the views differ in shape, a weight below 0, or a single image over all processes.
    """
    check_shapes("vicreg_loss", {"z1": (z1, "BD"), "z2": (z2, "BD")})
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    check_range("vicreg_loss", at_least=True, **weights)
    terms = vicreg_terms(z1, z2)
    return invariance * terms[0] + variance * terms[1] + covariance * terms[2]


@full_precision
def vicreg_terms(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns invariance, variance and covariance, unweighted."""
    images = len(z1) * distributed.world_size()
    if images < 2:
        raise UserError("vicreg_loss: a single image has no variance: give 2 at least")
    covariances = [cross_covariance(z, z) * (images / (images - 1)) for z in (z1, z2)]
    variance = sum(F.relu(1 - (each.diagonal() + 1e-4).sqrt()).mean() / 2 for each in covariances)
    covariance = sum((each.square().sum() - each.diagonal().square().sum()) / len(each) for each in covariances)
    assert isinstance(variance, Tensor)
    assert isinstance(covariance, Tensor)
    return F.mse_loss(z1, z2), variance, covariance


class VICReg(Objective):
    """Backbone and a wide expander, trained with :func:`vicreg_loss`; no teacher, no predictor.

    Args:
        backbone: the network to pretrain.
        projection_layers: depth of the expander.
        hidden_dim: width inside the expander.
        projection_dim: width of the embeddings, D.
        invariance, variance, covariance: weights of the three terms.

    Raises:
        UserError: an expander without a layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        projection_layers: Layers,
        hidden_dim: Channels,
        projection_dim: Channels,
        invariance: Weight,
        variance: Weight,
        covariance: Weight,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        widths = projector_widths(backbone.num_features, hidden_dim, projection_layers, projection_dim)
        self.projector: nn.Module = mlp(widths, bias_hidden=True)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def check(self, plan: Plan) -> None:
        """Requires two views, and two images, without which nothing varies."""
        plan.needs_views(2, 2)
        if plan.batch_size < 2:
            raise UserError(f"batch_size={plan.batch_size}: columns must vary over a batch: give 2 at least")

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward per view, so that BatchNorm sees views separately, as in the official code."""
        features = [self.backbone(view) for view in batch.views]
        z1, z2 = (self.projector(each) for each in features)
        terms = dict(zip(self.weights, vicreg_terms(z1, z2), strict=True))
        loss = sum((self.weights[name] * term for name, term in terms.items()), terms["variance"].new_zeros(()))
        # without their graph: the loss normalises nothing
        metrics = {name: term.detach() for name, term in terms.items()}
        return Output(loss, features[0].detach(), metrics, z1.detach(), z2.detach())

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the variance term: 0.99 when all embeddings are equal, below 0.5 soon after the start."""
        return (
            MetricBound(
                "columns-do-not-vary",
                "variance",
                0.0,
                0.9,
                "all images get nearly the same embedding",
                "a larger objective.variance, a longer warm-up, and a look at optimizer.lr",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns 0.99 times the weight of the variance."""
        return 0.99 * self.weights["variance"]

"""LeJEPA: views of an image have one embedding, and all embeddings together are normally distributed.

Balestriero and LeCun 2025, arXiv:2511.08544. No teacher, no stop-gradient, no schedule. Numbers are those of
rbalestr-lab/lejepa and of stable-pretraining.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Count, Layers, Weight
from unlabeled.core.seeding import derive_seed, to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_shapes
from unlabeled.objectives.parts.crops import by_resolution
from unlabeled.objectives.parts.heads import mlp
from unlabeled.objectives.parts.precision import full_precision

KNOTS, LAST = 17, 3.0  # points of the characteristic function, from 0 to 3
_DIRECTIONS = 0xD1CE  # keeps these draws apart from those of the views, which mix (seed, step, view)


@full_precision
def sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """Returns how far embeddings are from a standard normal distribution: SIGReg (arXiv:2511.08544, Algorithm 1).

    The Epps–Pulley statistic of the embeddings along each direction, mean over directions: with φ(t) = exp(−t²/2),
    N · Σ_t w_t φ(t) ((E cos tx − φ(t))² + (E sin tx)²) at 17 points on [0, 3], w_t the trapezoid's weights, doubled as
    the other half of the line is the same. Means and N are over the rows of all processes.

    Args:
        embeddings: [N, D], the same N on every process.
        directions: [D, R], unit columns, the same on every process.

    Returns:
        Scalar, about the same at any N for normally distributed rows; the least of equal rows is N · 0.402, at 0.

    Raises:
        UserError: shapes that do not fit together.
    """
    check_shapes("sigreg", {"embeddings": (embeddings, "ND"), "directions": (directions, "DR")})
    projected = embeddings @ directions.to(embeddings.dtype)
    points, phi, weights = _knots(projected)
    rows = len(embeddings) * distributed.world_size()
    statistic = projected.new_zeros(directions.shape[1])
    for t, expected, weight in zip(points, phi, weights, strict=True):
        cosine = distributed.mean((projected * t).cos().mean(0))
        sine = distributed.mean((projected * t).sin().mean(0))
        statistic = statistic + weight * ((cosine - expected).square() + sine.square())
    return rows * statistic.mean()


def _knots(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns points, the normal distribution's characteristic function at them, and the weights of their errors."""
    points = torch.linspace(0, LAST, KNOTS, dtype=like.dtype, device=like.device)
    phi = (-points.square() / 2).exp()
    step = LAST / (KNOTS - 1)
    ends = (points == 0) | (points == LAST)
    trapezoid = 2 * step - step * ends.to(points.dtype)  # no assignment by index: on a GPU it would copy and wait
    return points, phi, trapezoid * phi


@full_precision
def invariance(views: Tensor, large: int) -> Tensor:
    """Returns the mean squared distance of all views to the mean of the large ones (arXiv:2511.08544, eq. 7).

    Args:
        views: [V, N, D], the embeddings of V views of N images.
        large: how many of the first views give the centre, from 1 to V; it has a gradient.

    Returns:
        Scalar, mean over views, images and columns.

    Raises:
        UserError: views of another form, or a number of large ones that they do not have.
    """
    check_shapes("invariance", {"views": (views, "VND")})
    if isinstance(large, bool) or not isinstance(large, int) or not 1 <= large <= len(views):
        raise UserError(f"invariance: large={large} must be a whole number from 1 to {len(views)}, the number of views")
    return (views[:large].mean(0) - views).square().mean()


class LeJEPA(Objective):
    """Backbone and projector, trained with :func:`invariance` plus a weight times :func:`sigreg`.

    Views of the first view's size are large. The directions of a step are drawn from (seed, step).

    Args:
        backbone: the network to pretrain.
        embedding_dim: width of the linear layer with which the projector begins.
        projection_layers: depth of the MLP after it.
        hidden_dim: width inside that MLP.
        projection_dim: width of the embeddings, D.
        directions: number of random directions in a step, R.
        regularisation: weight λ of :func:`sigreg`.

    Raises:
        UserError: a projector without a layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        embedding_dim: Channels,
        projection_layers: Layers,
        hidden_dim: Channels,
        projection_dim: Channels,
        directions: Count,
        regularisation: Weight,
    ) -> None:
        super().__init__()
        if projection_layers < 1:
            raise UserError(f"objective.projection_layers={projection_layers}: a projector has at least one layer")
        self.backbone = backbone
        widths = [embedding_dim, *[hidden_dim] * (projection_layers - 1), projection_dim]
        first = nn.Linear(backbone.num_features, embedding_dim)
        self.projector: nn.Module = nn.Sequential(first, *mlp(widths, bias_hidden=True, bias_last=True))
        self.projection_dim, self.directions, self.regularisation = projection_dim, directions, regularisation

    def check(self, plan: Plan) -> None:
        """Requires two views, the large ones first."""
        plan.needs_views(2)
        if max(plan.views) > plan.views[0]:
            raise UserError(f"views: the large views come first, then small ones; here {list(plan.views)} pixels")

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one backbone forward per resolution, and one projector forward over all views."""
        views = batch.views
        large = sum(view.shape == views[0].shape for view in views)
        features = by_resolution(self.backbone, views)
        z = self.projector(features)
        near = invariance(z.unflatten(0, (len(views), -1)), large)
        normal = sigreg(z, self._directions(progress, z.device))
        loss = near + self.regularisation * normal
        metrics = {"invariance": near.detach(), "sigreg": normal.detach(), "embedding_std": _spread(z)}
        first, second = z.detach().chunk(len(views))[:2]  # without their graph: the loss normalises nothing
        return Output(loss, features.detach().chunk(len(views))[0], metrics, first, second)

    def _directions(self, progress: Progress, device: torch.device) -> Tensor:
        """Returns unit columns [D, R]: on the CPU first, so that they are the same on every device and process."""
        generator = torch.Generator().manual_seed(derive_seed(progress.seed, progress.batch, _DIRECTIONS))
        drawn = torch.randn(self.projection_dim, self.directions, generator=generator, device="cpu")
        return to_device(drawn / drawn.norm(dim=0), device)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the deviation of a column: 1 for a normal distribution, 0 when all embeddings are equal."""
        return (
            MetricBound(
                "embeddings-not-spread",
                "embedding_std",
                0.05,
                20.0,
                "embeddings are far from a standard normal distribution: equal, or without a bound",
                "a larger objective.regularisation, a longer warm-up, and a look at optimizer.lr",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the loss when all embeddings are 0, the least of all that are equal."""
        _, phi, weights = _knots(torch.zeros((), dtype=torch.float64))
        per_row = float((weights * (1 - phi).square()).sum())
        return self.regularisation * len(plan.views) * plan.batch_size * per_row


@torch.no_grad()
def _spread(z: Tensor) -> Tensor:
    """Returns the root mean square of the columns' deviations, over all processes."""
    rows = z.float()
    mean, square = distributed.mean(rows.mean(0)), distributed.mean(rows.square().mean(0))
    return (square - mean.square()).clamp(min=0).mean().sqrt()

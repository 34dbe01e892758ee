"""SupCon and triplets: embeddings of one class are near each other, and far from those of other classes.

SupCon: Khosla et al. 2020, arXiv:2004.11362; official code: github.com/HobbitLong/SupContrast. Triplets: Schroff et al.
2015 (FaceNet), arXiv:1503.03832; the hardest of a batch, and a soft margin: Hermans et al. 2017, arXiv:1703.07737.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Positive, Temperature
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.contrast import log_sum_exp
from unlabeled.objectives.parts.heads import mlp
from unlabeled.objectives.parts.labels import check_labels, same_class
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.signs import VIEWS_ALIKE

Mining = Literal["hardest", "semi_hard"]


@full_precision
def supcon_loss(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns the supervised contrastive loss (arXiv:2004.11362, eq. 2), mean over the 2B local anchors.

    Positives of an anchor are all other views of its class, over all processes; candidates are all views but itself.
    The official code multiplies by temperature / 0.07. Without labels it is NT-Xent. An anchor without a positive
    would count 0; with two views there is none.

    Args:
        z1, z2: [B, D], the two views of B images, unnormalised, the same B on every process.
        labels: int64 [B]; below 0: unknown, only the image's other view is a positive.
        temperature: above 0.

    Returns:
        Scalar; ln(2N−1) when all embeddings are equal, with N images over all processes.

    Raises:
        UserError: shapes that do not fit together, labels of another type, or a temperature that is not above 0.
    """
    _check("supcon_loss", z1, z2, labels)
    check_range("supcon_loss", temperature=temperature)
    rows, columns = _unit_views(z1, z2)
    anchors, (same, itself) = rows / temperature, same_class(labels)
    positives = same.scatter(1, itself[:, None], False).to(rows.dtype)
    counts = positives.sum(1)
    drawn = (anchors * (positives @ columns)).sum(1) / counts.clamp(min=1)
    return ((log_sum_exp(anchors, columns, itself) - drawn) * (counts > 0)).mean()


@full_precision
def triplet_loss(z1: Tensor, z2: Tensor, labels: Tensor, margin: float | None, mining: Mining = "hardest") -> Tensor:
    """Returns the triplet loss of mined triplets, mean over the 2B local anchors.

    d is the squared distance of unit rows; positives are the anchor's class, negatives the others, over all processes.
    ``hardest``: the farthest positive and the nearest negative (arXiv:1703.07737, eq. 5). ``semi_hard``: the mean over
    positives, each with the nearest negative that is farther than it, or else the farthest (arXiv:1503.03832, section
    3.2), which collapses less easily from random weights. An anchor without a negative counts 0.

    Args:
        z1, z2: [B, D], the two views of B images, unnormalised, the same B on every process.
        labels: int64 [B]; below 0: unknown, the positive is the image's other view, and all others may be negatives.
        margin: m of relu(d(a, p) − d(a, n) + m), above 0; None for the soft margin ln(1 + exp(d(a, p) − d(a, n))).
        mining: which triplets.

    Returns:
        Scalar; the margin, or ln 2 without one, when all embeddings are equal.

    Raises:
        UserError: shapes that do not fit together, labels of another type, a margin that is not above 0, or a mining of
            another name.
    """
    _check("triplet_loss", z1, z2, labels)
    if margin is not None:
        check_range("triplet_loss", margin=margin)
    if mining not in ("hardest", "semi_hard"):
        raise UserError(f"triplet_loss: mining={mining}: allowed are hardest and semi_hard")
    rows, columns = _unit_views(z1, z2)
    same, itself = same_class(labels)
    distances, positives = 2 - 2 * rows @ columns.T, same.scatter(1, itself[:, None], False)
    apart, counted = (_hardest if mining == "hardest" else _semi_hard)(distances, positives, same)
    costs = F.softplus(apart) if margin is None else F.relu(apart + margin)
    return ((costs * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()


def _hardest(distances: Tensor, positives: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Returns d(a, p) − d(a, n) [2B, 1], and whether the anchor has a negative."""
    infinity, found = float("inf"), ~same.all(1, keepdim=True)
    nearest_other = distances.masked_fill(same, infinity).amin(1, keepdim=True)
    farthest_own = distances.masked_fill(~positives, -infinity).amax(1, keepdim=True)
    return farthest_own - torch.where(found, nearest_other, farthest_own), found


def _semi_hard(distances: Tensor, positives: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Returns d(a, p) − d(a, n) of each column p [2B, 2N], and which columns are positives with a negative."""
    ascending = distances.masked_fill(same, float("inf")).sort(1).values
    negatives = (~same).sum(1, keepdim=True)
    farther = torch.searchsorted(ascending.detach(), distances.detach().contiguous(), right=True)
    chosen = ascending.gather(1, farther.minimum((negatives - 1).clamp(min=0)))
    counted = positives & (negatives > 0)
    return torch.where(counted, distances, 0.0) - torch.where(counted, chosen, 0.0), counted


def _unit_views(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Returns unit rows of both local views [2B, D], and of those of all processes [2N, D]."""
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    return torch.cat([z1, z2]), torch.cat([distributed.gather(z1), distributed.gather(z2)])


def _check(caller: str, z1: Tensor, z2: Tensor, labels: Tensor) -> None:
    check_shapes(caller, {"z1": (z1, "BD"), "z2": (z2, "BD"), "labels": (labels, "B")})
    check_labels(caller, labels)


class SupCon(Objective):
    """Backbone and projector, trained with :func:`supcon_loss`.

    Args:
        backbone: the network to train.
        hidden_dim: width inside the projector, which has two layers and no BatchNorm.
        projection_dim: width of the embeddings, D.
        temperature: of the softmax.
    """

    uses_labels = True

    def __init__(
        self, backbone: Backbone, hidden_dim: Channels, projection_dim: Channels, temperature: Temperature
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector: nn.Module = _projector(backbone, hidden_dim, projection_dim)
        self.temperature = temperature

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)
        plan.needs_negatives()
        plan.needs_labels()

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"temperature": self.temperature}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward over both views: BatchNorm sees 2B images, as in the official code."""
        features, z1, z2 = _project_both(self.backbone, self.projector, batch)
        loss = supcon_loss(z1, z2, batch.labels, self.temperature)
        return Output(loss, features, {"positive_similarity": _similarity(z1, z2)}, embeddings=z1)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (VIEWS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln(2N−1) for a global batch of N images."""
        return math.log(2 * plan.batch_size - 1)


class Triplet(Objective):
    """Backbone and projector, trained with :func:`triplet_loss`.

    Args:
        backbone: the network to train.
        hidden_dim: width inside the projector, which has two layers and no BatchNorm.
        projection_dim: width of the embeddings, D.
        margin: of the loss; None for the soft margin.
        mining: of the loss, ``hardest`` or ``semi_hard``.
        use_labels: whether positives are the images of a class; if not, the other view is the only one, and the method
            sees no label.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden_dim: Channels,
        projection_dim: Channels,
        margin: Positive | None,
        mining: Mining,
        use_labels: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector: nn.Module = _projector(backbone, hidden_dim, projection_dim)
        self.margin, self.uses_labels = margin, use_labels
        self.mining: Mining = mining

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)
        plan.needs_negatives()
        if self.uses_labels:
            plan.needs_labels()

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward over both views: BatchNorm sees 2B images."""
        features, z1, z2 = _project_both(self.backbone, self.projector, batch)
        labels = batch.labels if self.uses_labels else torch.full_like(batch.labels, -1)
        loss = triplet_loss(z1, z2, labels, self.margin, self.mining)
        return Output(loss, features, {"positive_similarity": _similarity(z1, z2)}, embeddings=z1)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (VIEWS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the margin, or ln 2 of the soft one."""
        return math.log(2) if self.margin is None else self.margin


def _projector(backbone: Backbone, hidden_dim: int, projection_dim: int) -> nn.Sequential:
    """Builds the official head (networks/resnet_big.py): Linear, ReLU, Linear."""
    widths = [backbone.num_features, hidden_dim, projection_dim]
    return mlp(widths, norm=False, bias_hidden=True, bias_last=True)


def _project_both(backbone: nn.Module, projector: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns detached features of the first view, and the embeddings of both."""
    features = backbone(torch.cat(batch.views))
    z1, z2 = projector(features).chunk(2)
    return features.detach().chunk(2)[0], z1, z2


def _similarity(z1: Tensor, z2: Tensor) -> Tensor:
    return F.cosine_similarity(z1.detach().float(), z2.detach().float()).mean()

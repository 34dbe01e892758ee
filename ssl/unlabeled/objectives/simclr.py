"""SimCLR: two views of an image must find each other in the whole batch.

v1: Chen et al. 2020, arXiv:2002.05709. v2: arXiv:2006.10029. Official code: github.com/google-research/simclr.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Layers, Temperature
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_shapes
from unlabeled.objectives.parts.contrast import log_sum_exp
from unlabeled.objectives.parts.heads import plain_projector, simclr_projector
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.signs import VIEWS_ALIKE


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Returns the NT-Xent loss, a normalised cross-entropy (arXiv:2002.05709, eq. 1), mean over the 2B local anchors.

    Each anchor is compared with the 2N−1 other embeddings of all processes; only its similarity with itself is masked.
    The official code adds the means of the two views, which is twice this value.

    Args:
        z1, z2: [B, D], the two views of B images, unnormalised, the same B on every process.
        temperature: above 0.

    Returns:
        Scalar; ln(2N−1) when all embeddings are equal, with N images over all processes.

    Raises:
        UserError: the views differ in shape, or a temperature that is not above 0.
    """
    check_shapes("nt_xent", {"z1": (z1, "BD"), "z2": (z2, "BD")}, temperature=temperature)
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    anchors = torch.cat([z1, z2]) / temperature
    others = torch.cat([distributed.gather(z1), distributed.gather(z2)])
    first = distributed.rank() * len(z1) + torch.arange(len(z1), device=z1.device)
    itself = torch.cat([first, first + len(others) // 2])
    positive = (anchors * torch.cat([z2, z1])).sum(1)
    return (log_sum_exp(anchors, others, itself) - positive).mean()


class SimCLR(Objective):
    """Backbone and projector, trained with :func:`nt_xent`.

    Args:
        backbone: the network to pretrain.
        projection_layers: depth of the projector, 2 in v1 and 3 in v2.
        projection_dim: width of the embeddings that the loss compares.
        temperature: of the softmax.
        sum: add the means of the two views, as the official code; False: their mean, as in the paper. LARS gives biases
            and norms the raw gradient, of which this is a factor of 2.
        projection_hidden: width of the projector's hidden layers; None: that of the features.
        projection_norm: whether the projector is the official one with BatchNorm; False: as solo-learn has it, linear
            layers with bias and ReLU between them.

    Raises:
        UserError: a projector without a layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        projection_layers: Layers,
        projection_dim: Channels,
        temperature: Temperature,
        sum: bool = False,
        projection_hidden: Channels | None = None,
        projection_norm: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        width = projection_hidden or backbone.num_features
        self.projector: nn.Module = (
            simclr_projector(backbone.num_features, projection_layers, projection_dim, width)
            if projection_norm
            else plain_projector(backbone.num_features, projection_layers, projection_dim, width)
        )
        self.temperature, self.sum = temperature, sum

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)
        plan.needs_negatives()

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"temperature": self.temperature}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward over both views: BatchNorm sees 2B images, as in the official code."""
        features = self.backbone(torch.cat(batch.views))
        z1, z2 = self.projector(features).chunk(2)
        similarity = F.cosine_similarity(z1.detach().float(), z2.detach().float()).mean()
        loss = nt_xent(z1, z2, self.temperature) * (1 + self.sum)
        return Output(loss, features.detach().chunk(2)[0], {"positive_similarity": similarity}, embeddings=z1)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (VIEWS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln(2N−1) for a global batch of N images, twice that for the sum of both views."""
        return (1 + self.sum) * math.log(2 * plan.batch_size - 1)

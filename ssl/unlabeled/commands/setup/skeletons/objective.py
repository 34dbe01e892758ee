"""Skeleton: views of one image lie together, all images spread out. Alignment and uniformity on the sphere.

Wang and Isola 2020, arXiv:2005.10242. Put your loss in the place of this one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled import distributed
from unlabeled.objective import Backbone, Batch, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.heads import simclr_projector
from unlabeled.objectives.parts.precision import full_precision


@full_precision  # whatever autocast says, losses are computed in float32
def skeleton_loss(z1: Tensor, z2: Tensor, uniformity: float) -> Tensor:
    """Mean squared distance of the two views, plus ``uniformity`` times log mean exp(−2 d²) over pairs of images.

    Args:
        z1, z2: [B, D], the two views of B images, unnormalised, the same B on every process.
        uniformity: weight of the second term.

    Returns:
        Scalar; the mean over processes is the value of one process with the whole batch.
    """
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    alignment = (z1 - z2).square().sum(1).mean()
    return alignment + uniformity * (_spread(z1) + _spread(z2)) / 2


def _spread(z: Tensor) -> Tensor:
    everyone = distributed.gather(z)  # rows of all processes, with an exact gradient
    distances = 2 - 2 * z @ everyone.T
    own = distributed.rank() * len(z) + torch.arange(len(z), device=z.device)
    others = torch.ones_like(distances).scatter_(1, own[:, None], 0.0)
    total = distributed.mean(((-2 * distances).exp() * others).sum() / others.sum())
    return total.log()


class Skeleton(Objective):
    """Backbone and projector, trained with :func:`skeleton_loss`.

    Args:
        backbone: what is pretrained.
        projection_dim: width of the embeddings that the loss compares.
        uniformity: weight of the second term.
    """

    def __init__(self, backbone: Backbone, projection_dim: int, uniformity: float) -> None:
        super().__init__()
        self.backbone, self.uniformity = backbone, uniformity
        self.projector = simclr_projector(backbone.num_features, 2, projection_dim)

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)  # what cannot work is refused before an image is read

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.backbone(torch.cat(batch.views))
        z1, z2 = self.projector(features).chunk(2)
        return Output(skeleton_loss(z1, z2, self.uniformity), features.detach().chunk(2)[0], embeddings=z1)

    def collapsed_at(self, plan: Plan) -> float | None:
        """All embeddings equal: no distance between views, and log 1 of the second term."""
        return 0.0

"""SimSiam, which collapses at once without its stop-gradient or its predictor: here to try the health monitor on.

Chen and He 2021, arXiv:2011.10566. No method of the project depends on these two as much, all have negatives, codes or
labels besides.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.objective import Backbone, Batch, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z, dim=1).mean()


class SimSiam(Objective):
    """Two views, a projector of two layers (section 4.7, CIFAR-10), a bottleneck as predictor.

    Args:
        backbone: what is pretrained.
        dim: width of the embeddings, four times that of the bottleneck.
        predictor: whether there is one.
        stop_gradient: likewise.
    """

    def __init__(self, backbone: Backbone, dim: int, predictor: bool, stop_gradient: bool) -> None:
        super().__init__()
        self.backbone, self.stop_gradient = backbone, stop_gradient
        first = [nn.Linear(backbone.num_features, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
        self.projector = nn.Sequential(*first, nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False))
        inner = [nn.Linear(dim, dim // 4, bias=False), nn.BatchNorm1d(dim // 4), nn.ReLU()]
        self.predictor = nn.Sequential(*inner, nn.Linear(dim // 4, dim)) if predictor else nn.Identity()

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = [self.backbone(view) for view in batch.views]
        z = [self.projector(each) for each in features]
        p = [self.predictor(each) for each in z]
        targets: Sequence[Tensor] = [each.detach() for each in z] if self.stop_gradient else z
        loss = (negative_cosine(p[0], targets[1]) + negative_cosine(p[1], targets[0])) / 2
        return Output(loss, features[0].detach(), {}, p[0], targets[1])

    def collapsed_at(self, plan: Plan) -> float | None:
        return -1.0

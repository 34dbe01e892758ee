"""NNCLR: a view must find, among the batch, the image whose other view has a given nearest neighbour in a queue.

Dwibedi et al. 2021, arXiv:2104.14548. There is no official code; the order of look-up and queue is solo-learn's
(vturrisi/solo-learn, solo/methods/nnclr.py).
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Count, Layers, Temperature
from unlabeled.objective import Backbone, Batch, Check, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_shapes
from unlabeled.objectives.parts.contrast import log_sum_exp
from unlabeled.objectives.parts.heads import mlp, projector_widths
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.queue import KeyQueue
from unlabeled.objectives.parts.signs import VIEWS_ALIKE


@full_precision
def nnclr_loss(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """Returns InfoNCE of neighbours and predictions, one direction (arXiv:2104.14548, eq. 2), mean over local images.

    The prediction of the same image is the positive; those of all images of all processes are the candidates.

    Args:
        neighbours: [B, D], the nearest neighbour of one view of each image, unnormalised; gets no gradient.
        predictions: [B, D], the predictions of the other view, unnormalised, the same B on every process.
        temperature: above 0.

    Returns:
        Scalar; ln N when all embeddings are equal, with N images over all processes.

    Raises:
        UserError: shapes that do not fit together, or a temperature that is not above 0.
    """
    check_shapes(
        "nnclr_loss",
        {"neighbours": (neighbours, "BD"), "predictions": (predictions, "BD")},
        temperature=temperature,
    )
    anchors = F.normalize(neighbours.detach(), dim=1) / temperature
    predictions = F.normalize(predictions, dim=1)
    return (log_sum_exp(anchors, distributed.gather(predictions)) - (anchors * predictions).sum(1)).mean()


class NNCLR(Objective):
    """Backbone, projector and predictor, and a queue of earlier projections in which neighbours are looked up.

    Neighbours of both views are looked up before the batch enters the queue, or each would be its own. The projections
    of the first view enter it. solo-learn uses BatchNorm over the global batch: trainer.sync_batchnorm=true.

    Args:
        backbone: the network to pretrain.
        projection_layers: depth of the projector; each layer ends in a BatchNorm.
        hidden_dim: width inside the projector.
        projection_dim: width of the embeddings, D.
        predictor_dim: width inside the predictor.
        temperature: of the softmax.
        queue_size: number of embeddings in the queue, K.

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
        temperature: Temperature,
        queue_size: Count,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        widths = projector_widths(backbone.num_features, hidden_dim, projection_layers, projection_dim)
        self.projector: nn.Module = mlp(widths, last_norm="affine", bias_hidden=True, bias_last=True)
        predictor_widths = [projection_dim, predictor_dim, projection_dim]
        self.predictor: nn.Module = mlp(predictor_widths, bias_hidden=True, bias_last=True)
        self.queue = KeyQueue(queue_size, projection_dim)
        self.temperature = temperature

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)
        plan.needs_negatives()

    def plan_warnings(self, plan: Plan) -> list[Check]:
        """Checks that the queue is not much longer than the data; solo-learn's for CIFAR-10 is 1.3 times as long."""
        size = len(self.queue.keys)
        return [
            Check(
                "a queue that is not much longer than the data",
                size < 2 * plan.images,
                f"objective.queue_size={size}, training images {plan.images}",
                "the queue holds several earlier views of each image, and they are its nearest neighbours: give"
                f" objective.queue_size={max(1, plan.images // 2)}",
            )
        ]

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        """Returns ``queue_fill``, the share of embeddings that come from images, and ``queue_age`` in steps."""
        size = len(self.queue.keys)
        fill = min(1.0, progress.batch * plan.batch_size / size)
        age = fill * size / (plan.batch_size * progress.parts)
        return {"temperature": self.temperature, "queue_fill": fill, "queue_age": age}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward per view, so that BatchNorm sees views separately, as in solo-learn."""
        features = [self.backbone(view) for view in batch.views]
        z1, z2 = (self.projector(each) for each in features)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        near1, near2 = self.queue.nearest(z1), self.queue.nearest(z2)
        loss = (nnclr_loss(near1, p2, self.temperature) + nnclr_loss(near2, p1, self.temperature)) / 2
        if self.training:
            self.queue.enqueue(z1.detach())
        metrics = {
            "positive_similarity": _similarity(z1, z2),
            "neighbour_similarity": _similarity(z1, near1),
        }
        return Output(loss, features[0].detach(), metrics, p2, near1)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the cosine with neighbours too: 1 if the batch is in the queue before the look-up."""
        return (
            VIEWS_ALIKE,
            MetricBound(
                "neighbour-is-itself",
                "neighbour_similarity",
                -1.0,
                0.9999,
                "the nearest neighbour of every image is the image itself, or all images get one embedding",
                "look neighbours up before the batch enters the queue; a look at optimizer.lr",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln N for a global batch of N images."""
        return math.log(plan.batch_size)


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.detach().float(), b.detach().float()).mean()

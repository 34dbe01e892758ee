"""Supervised: a linear classifier on the backbone and cross-entropy, the row that tables compare others with."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Classes, PartialShare
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.labels import accuracy_above_chance, check_labels
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns the cross-entropy, mean over the labelled images of all processes (arXiv:1512.00567).

    Args:
        logits: [B, C], the same B on every process.
        labels: int64 [B], from 0 to C − 1; -1 for an image without a label, which does not count.
        label_smoothing: share ε of the target that is spread over all C classes, from 0 to below 1.

    Returns:
        Scalar, whose mean over processes is the loss; ln C when all logits are equal, 0 without any label.

    Raises:
        UserError: shapes that do not fit together, labels of another type or, on a CPU, above the classes, or a
            smoothing outside of its range.
    """
    sizes = check_shapes("classification_loss", {"logits": (logits, "BC"), "labels": (labels, "B")})
    check_labels("classification_loss", labels, sizes["C"])
    check_range("classification_loss", most=1, at_least=True, label_smoothing=label_smoothing)
    if label_smoothing == 1:
        raise UserError("classification_loss: label_smoothing=1 must be below 1: nothing of the label would be left")
    given = (labels >= 0).to(logits.dtype)
    costs = F.cross_entropy(logits, labels.clamp(min=0), reduction="none", label_smoothing=label_smoothing)
    return (costs * given).sum() * distributed.world_size() / distributed.total(given.sum()).clamp(min=1)


class Supervised(Objective):
    """Backbone and a linear classifier, trained with :func:`classification_loss`.

    Args:
        backbone: the network to train.
        classes: outputs of the classifier; at least the classes of the data.
        label_smoothing: ε of the loss.
    """

    uses_labels = True

    def __init__(self, backbone: Backbone, classes: Classes, label_smoothing: PartialShare) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.num_features, classes)
        self.label_smoothing = label_smoothing

    def check(self, plan: Plan) -> None:
        """Requires one view, and no more classes than the classifier has."""
        plan.needs_views(1, 1)
        if (classes := plan.needs_labels()) > self.classifier.out_features:
            raise UserError(
                f"objective.classes={self.classifier.out_features}: the training images have {classes} classes: give"
                f" objective.classes={classes}"
            )

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        (view,) = batch.views
        features = self.backbone(view)
        logits = self.classifier(features)
        loss = classification_loss(logits, batch.labels, self.label_smoothing)
        return Output(loss, features.detach(), {"train_top1": _top1(logits.detach(), batch.labels)})

    def own_classifier(self) -> nn.Module:
        return self.classifier

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the accuracy on training images: no better than chance means that nothing was learnt."""
        classes = plan.classes or self.classifier.out_features
        return (
            MetricBound(
                "labels-not-learnt",
                "train_top1",
                accuracy_above_chance(classes, plan.batch_size),
                1.0,
                "training images are classified no better than by chance",
                "a look at the labels, optimizer.lr and its warm-up",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln C of the data's classes: the loss of equal probabilities."""
        return math.log(plan.classes or self.classifier.out_features)


def _top1(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the share of labelled images of all processes that are classified right; 0 without a label."""
    counts = torch.stack([(logits.argmax(1) == labels).sum(), (labels >= 0).sum()]).to(torch.float32)
    counts = distributed.total(counts)
    return counts[0] / counts[1].clamp(min=1)

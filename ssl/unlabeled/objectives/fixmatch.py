"""FixMatch: what a network is sure of in a weakly changed image is its label for the strongly changed one.

Sohn et al. 2020, arXiv:2001.07685. Official code: github.com/google-research/fixmatch (fixmatch.py, libml/models.py).
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Classes, Share, Threshold, Weight
from unlabeled.data.support import ClassBalanced
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.labels import accuracy_above_chance, check_labels
from unlabeled.objectives.parts.precision import full_precision

PseudoLabels = Literal["trained", "average"]


@full_precision
def fixmatch_loss(
    labelled_logits: Tensor,
    labels: Tensor,
    weak_logits: Tensor,
    strong_logits: Tensor,
    threshold: float,
    unlabelled_weight: float,
) -> Tensor:
    """Returns ℓ_s + λ·ℓ_u (arXiv:2001.07685, eq. 3 and 4), means over the local images.

    ℓ_u is the mean over ALL unlabelled images of the cross-entropy with the class that is likeliest in the weak view,
    which counts only where its probability is at least the threshold.

    Args:
        labelled_logits: [L, C], of weak views of labelled images, the same L on every process.
        labels: int64 [L], from 0 to C − 1.
        weak_logits: [U, C], of weak views of unlabelled images; get no gradient.
        strong_logits: [U, C], of strong views of the same images.
        threshold: τ in [0, 2]; above 1 no image counts.
        unlabelled_weight: λ, at least 0.

    Returns:
        Scalar; ln C when all logits are equal, for a threshold above 1/C.

    Raises:
        UserError: shapes that do not fit together, labels of another type or, on a CPU, above the classes, or a number
            out of its range.
    """
    labelled = {"labelled_logits": (labelled_logits, "LC"), "labels": (labels, "L")}
    unlabelled = {"weak_logits": (weak_logits, "UC"), "strong_logits": (strong_logits, "UC")}
    sizes = check_shapes("fixmatch_loss", labelled | unlabelled)
    check_labels("fixmatch_loss", labels, sizes["C"])
    check_range("fixmatch_loss", most=2, at_least=True, threshold=threshold)
    check_range("fixmatch_loss", at_least=True, unlabelled_weight=unlabelled_weight)
    sure, classes = F.softmax(weak_logits.detach(), dim=1).max(1)
    counts = (sure >= threshold) + 0 * sure  # what is not a number stays none
    costs = F.cross_entropy(strong_logits, classes, reduction="none") * counts
    return F.cross_entropy(labelled_logits, labels) + unlabelled_weight * costs.mean()


class FixMatch(Objective):
    """Backbone and a linear classifier, and their moving average, which is what is evaluated and published.

    One forward has the labelled images and both views of the others, so that BatchNorm sees all of them; with the
    average's classes it has the labelled and the strong views, and the average a forward of its own. The average
    follows after each step, with the new weights; its BatchNorm statistics are those of the trained network, as
    officially, where variables that are not trained have no average, or those of its own forward if it has one.

    Args:
        backbone: the network to train.
        classes: outputs of the classifier; at least the classes of the data.
        threshold: τ, from which probability on an image counts.
        unlabelled_weight: λ; 0 trains on the labelled images alone.
        momentum: of the moving average.
        support: the labelled images beside each batch.
        pseudo_labels: whose classes of the weak views are the labels of the strong ones: ``trained``, those of the
            network that is trained, as officially; ``average``, those of the moving average, with the BatchNorm
            statistics of the weak views, as Mean Teacher has it (Tarvainen and Valpola 2017, arXiv:1703.01780).

    Raises:
        UserError: an argument that cannot work.
    """

    uses_labels = True  # those of the support

    def __init__(
        self,
        backbone: Backbone,
        classes: Classes,
        threshold: Threshold,
        unlabelled_weight: Weight,
        momentum: Share,
        support: ClassBalanced,
        pseudo_labels: PseudoLabels = "trained",
    ) -> None:
        super().__init__()
        if pseudo_labels not in get_args(PseudoLabels):
            raise UserError(f"objective.pseudo_labels={pseudo_labels} is neither trained nor average")
        check_range("objective", most=1, at_least=True, momentum=momentum)
        if support.views != 1:
            raise UserError(f"objective.support.views={support.views}: labelled images get one view, the weak one")
        self.backbone, self.support = backbone, support
        self.classifier = nn.Linear(backbone.num_features, classes)
        nn.init.xavier_normal_(self.classifier.weight)  # libml/models.py, glorot_normal_initializer
        nn.init.zeros_(self.classifier.bias)
        self.ema_backbone = ema.frozen_copy(self.backbone)
        self.ema_classifier = ema.frozen_copy(self.classifier)
        self.threshold, self.unlabelled_weight, self.momentum = threshold, unlabelled_weight, momentum
        self.pseudo_labels = pseudo_labels

    def product(self) -> Backbone:
        return self.ema_backbone

    def check(self, plan: Plan) -> None:
        """Requires two views of one size, the weak one first, and no more classes than the classifier has."""
        plan.needs_views(2, 2)
        if len(set(plan.views)) > 1:
            raise UserError(f"views: the weak and the strong one share a forward: give one size, not {[*plan.views]}")
        if (classes := plan.needs_labels()) > self.classifier.out_features:
            raise UserError(
                f"objective.classes={self.classifier.out_features}: the training images have {classes} classes: give"
                f" objective.classes={classes}"
            )

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"momentum": self.momentum, "threshold": self.threshold}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        support = batch.support
        if support is None or not support.views or support.labels is None:
            raise UserError("objective=fixmatch needs labelled images beside each batch: Batch.support, with labels")
        labelled, features, weak, strong = self._logits(support.views[0], *batch.views)
        loss = fixmatch_loss(labelled, support.labels, weak, strong, self.threshold, self.unlabelled_weight)
        metrics = self._metrics(labelled.detach(), support.labels, weak.detach())
        return Output(loss, features, metrics)

    def _logits(self, labelled: Tensor, weak: Tensor, strong: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns logits of the labelled views, features of the weak ones, and logits of weak and strong ones."""
        images = len(weak)
        if self.pseudo_labels == "average":
            with torch.no_grad():
                features = self.ema_backbone(weak)
                weak_logits = self.ema_classifier(features)
            given = self.classifier(self.backbone(torch.cat([labelled, strong]))).split([len(labelled), images])
            return given[0], features, weak_logits, given[1]
        both = self.backbone(torch.cat([labelled, weak, strong]))
        given = self.classifier(both).split([len(labelled), images, images])
        return given[0], both[len(labelled) : len(labelled) + images].detach(), given[1], given[2]

    @full_precision
    def _metrics(self, labelled_logits: Tensor, labels: Tensor, weak_logits: Tensor) -> dict[str, Tensor]:
        """Returns the share of images that count, how many classes are predicted, and the share of labels known."""
        p = F.softmax(weak_logits, dim=1)
        mean = distributed.mean(p.mean(0))
        return {
            "confident": distributed.mean((p.amax(1) >= self.threshold).to(p.dtype).mean()),
            "effective_classes": torch.special.entr(mean).sum().exp(),
            "labelled_top1": distributed.mean((labelled_logits.argmax(1) == labels).to(p.dtype).mean()),
        }

    def after_step(self, progress: Progress) -> None:
        """Updates θ_ema ← m·θ_ema + (1 − m)·θ with the weights after the step.

        Copies BatchNorm's statistics too, unless the average sees images itself and has statistics of its own.
        """
        for average, trained in self.teacher_student_pairs():
            ema.update(average, trained, self.momentum)
            if self.pseudo_labels == "trained":
                ema.copy_buffers(average, trained)

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return (self.ema_backbone, self.backbone), (self.ema_classifier, self.classifier)

    def own_classifier(self) -> nn.Module:
        return self.ema_classifier

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds what the network predicts of unlabelled images, and of the few labelled ones."""
        classes = plan.classes or self.classifier.out_features
        return (
            MetricBound(
                "one-class-for-all",
                "effective_classes",
                min(1.5, classes),
                classes + 0.5,
                "unlabelled images all get the same class, which then is their label",
                "a larger objective.threshold, a lower optimizer.lr; a look at the labelled images in labels.txt",
                lasting=True,
            ),
            MetricBound(
                "labels-not-learnt",
                "labelled_top1",
                accuracy_above_chance(classes, self.support.images_per_step),
                1.0,
                "the labelled images are classified no better than by chance",
                "a look at the labels, optimizer.lr and its warm-up",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln C of the data's classes: the loss of equal probabilities."""
        return math.log(plan.classes or self.classifier.out_features)

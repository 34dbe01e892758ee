"""SCAN and self-labelling: an image and its neighbours fall into one cluster, and images fall into all clusters.

Van Gansbeke et al. 2020, arXiv:2005.12320. Numbers are those of wvangansbeke/Unsupervised-Classification, whose licence
(CC BY-NC) forbids more: nothing of its code is here.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import AtLeastTwo, Count, PartialShare, Weight
from unlabeled.data.companions import Companions
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Check, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.signs import ALL_IN_ONE

SMALLEST = 1e-8  # probability that the entropy takes for any below it; official
MOST = 100.0  # of −ln: the bound of torch's binary cross-entropy; official
IMAGES_PER_CLUSTER = 2  # of a batch; our choice: the mean over fewer can hardly be uniform


@full_precision
def scan_loss(anchor_logits: Tensor, neighbour_logits: Tensor, entropy_weight: float) -> Tensor:
    """Returns the loss of SCAN (arXiv:2005.12320, eq. 2): mean −ln⟨p_a, p_n⟩, minus λ times the entropy of mean p_a.

    Both means are over the images of all processes: a part of the batch would have another entropy. −ln is at most 100,
    mean probabilities below 1e-8 count as 1e-8.

    Args:
        anchor_logits: [B, C], of images, the same B on every process.
        neighbour_logits: [B, C], of a neighbour of each.
        entropy_weight: of the entropy, λ, from 0.

    Returns:
        Scalar, whose mean over processes is the loss: (1 − λ) ln C when all probabilities are 1 / C, and −λ ln C when
        neighbours agree, each is certain, and all clusters have as many images.

    Raises:
        UserError: shapes that do not fit together, or a weight below 0.
    """
    given = {"anchor_logits": (anchor_logits, "BC"), "neighbour_logits": (neighbour_logits, "BC")}
    check_shapes("scan_loss", given)
    check_range("scan_loss", at_least=True, entropy_weight=entropy_weight)
    everyone = torch.ones_like(anchor_logits[:, 0])
    return _head_losses(anchor_logits[:, None], neighbour_logits[:, None], everyone, entropy_weight).sum()


@full_precision
def self_label_loss(weak_logits: Tensor, strong_logits: Tensor, threshold: float, balance: bool) -> Tensor:
    """Returns the cross-entropy of strong views with the clusters of which weak views are certain (section 2.3).

    Means and frequencies are over the certain images of all processes.

    Args:
        weak_logits: [B, C], of weak views; gets no gradient.
        strong_logits: [B, C], of strong views of the same images, the same B on every process.
        threshold: probability above which a weak view is certain, from 0 to 1.
        balance: whether a cluster weighs 1 / its frequency among the certain images, in a weighted mean: the mean over
            the clusters that occur of the mean over their images.

    Returns:
        Scalar, whose mean over processes is the loss; 0 where no image is certain.

    Raises:
        UserError: shapes that do not fit together, or a threshold outside of its range.
    """
    check_shapes("self_label_loss", {"weak_logits": (weak_logits, "BC"), "strong_logits": (strong_logits, "BC")})
    check_range("self_label_loss", most=1, at_least=True, threshold=threshold)
    clusters, certain, counts = _certain_clusters(weak_logits, threshold)
    weights = certain / counts.clamp(min=1)[clusters] if balance else certain
    share = weights * distributed.world_size() / (counts > 0 if balance else counts).sum().clamp(min=1)
    broken = (weak_logits.detach() * 0).sum()  # not a number where a weak view is not, which would not be certain
    return (F.cross_entropy(strong_logits, clusters, reduction="none") * share).sum() + broken


@full_precision
def _head_losses(anchors: Tensor, neighbours: Tensor, counted: Tensor, entropy_weight: float) -> Tensor:
    """Returns the loss of each head [H], of logits [B, H, C], over the images with ``counted`` 1, others have 0 [B]."""
    share = counted * distributed.world_size() / distributed.total(counted.sum()).clamp(min=1)
    costs = (_disagreement(anchors, neighbours) * share[:, None]).sum(0)
    return costs - entropy_weight * _entropy(_mean_probabilities(anchors, share))


class SCAN(Objective):
    """Backbone and linear heads that say in which of C clusters an image is, trained with :func:`scan_loss`.

    The losses of the heads are added. The head is kept whose loss is lowest on images that are held out: neither they
    nor their neighbours' pairs count in the loss, and their own losses are averaged over about the last epoch.

    Args:
        backbone: the network to train on.
        clusters: number of clusters, C; more than there are classes is overclustering.
        heads: number of heads, which differ in their random start.
        entropy_weight: of the entropy in the loss.
        held_out: share of the images that are held out, drawn by their position in the data.
        companions: which neighbours, and the view that they are seen in.

    Raises:
        UserError: several heads and nothing held out to choose by, or companions in other views.
    """

    head_losses: Tensor
    held_sums: Tensor

    def __init__(
        self,
        backbone: Backbone,
        clusters: AtLeastTwo,
        heads: Count,
        entropy_weight: Weight,
        held_out: PartialShare,
        companions: Companions,
    ) -> None:
        super().__init__()
        if heads > 1 and not held_out:
            raise UserError(
                f"objective.held_out=0: of {heads} heads the one is kept whose loss on held-out images is lowest: give"
                " held_out=0.05, or heads=1"
            )
        if companions.views != 1 or not companions.own_views:
            raise UserError("objective.companions: a neighbour has one view of its own: give views=1, own_views=true")
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.num_features, heads * clusters)  # head after head
        self.heads, self.entropy_weight, self.held_out, self.companions = heads, entropy_weight, held_out, companions
        # of each head: images held out, the sum of their costs, the sums of their probabilities; older ones fade
        self.register_buffer("held_sums", torch.zeros(heads, 2 + clusters))
        self.register_buffer("head_losses", torch.zeros(heads))  # on these images

    def check(self, plan: Plan) -> None:
        """Requires a weak view, for images, and a strong one, for their neighbours."""
        plan.needs_views(2, 2)

    def plan_warnings(self, plan: Plan) -> list[Check]:
        """Checks that a batch has images enough for all clusters."""
        least = IMAGES_PER_CLUSTER * self._clusters
        return [
            Check(
                "several images of a batch for each cluster",
                plan.batch_size >= least,
                f"batch_size={plan.batch_size}, objective.clusters={self._clusters}",
                f"the entropy of a mean over few images is wrong: give batch_size={least} or more",
            )
        ]

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward for images and one for neighbours, so that BatchNorm sees them separately."""
        assert batch.companions is not None
        features = self.backbone(batch.views[0])
        anchors, neighbours = self._logits(features), self._logits(self.backbone(batch.companions.views[0]))
        held = self._held(batch.ids)
        trained = ~(held | self._held(batch.companions.ids))
        loss = _head_losses(anchors, neighbours, trained.to(anchors.dtype), self.entropy_weight).sum()
        if self.training:
            self._judge(anchors, neighbours, held, 1 - 1 / progress.steps_per_epoch)
        return Output(loss, features.detach(), self._metrics(anchors.detach(), neighbours.detach()))

    @property
    def _clusters(self) -> int:
        return self.held_sums.shape[1] - 2

    def _logits(self, features: Tensor) -> Tensor:
        """Returns the logits of all heads, [B, H, C]."""
        logits: Tensor = self.classifier(features)
        return logits.view(len(logits), self.heads, -1)

    def _held(self, ids: Tensor) -> Tensor:
        """Draws by the number of an image: Fibonacci hashing, which spreads neighbouring numbers evenly."""
        return ((ids * 2654435761) & 0xFFFFFFFF) < self.held_out * 2**32

    @torch.no_grad()
    def _judge(self, anchors: Tensor, neighbours: Tensor, held: Tensor, kept: float) -> None:
        """Adds the held-out images of this batch, over all processes, and renews the losses of the heads."""
        mine = held.to(self.held_sums.dtype)
        costs, p = _disagreement(anchors, neighbours).unsqueeze(2), _probabilities_of(anchors)
        sums = torch.cat([torch.ones_like(costs), costs, p], 2).to(mine.dtype) * mine[:, None, None]
        self.held_sums.mul_(kept).add_(distributed.total(sums.sum(0)))
        images = self.held_sums[:, :1].clamp(min=torch.finfo(mine.dtype).tiny)
        means = self.held_sums[:, 1:] / images
        self.head_losses.copy_(means[:, 0] - self.entropy_weight * _entropy(means[:, 1:]))

    @torch.no_grad()
    def _metrics(self, anchors: Tensor, neighbours: Tensor) -> dict[str, Tensor]:
        """Returns means over the heads."""
        most, clusters = _probabilities_of(anchors).max(2)
        share = torch.full_like(most[:, 0], 1 / len(most))
        used = _entropy(_mean_probabilities(anchors, share)) / math.log(self._clusters)
        return {
            "cluster_entropy": used.mean(),
            "confidence": most.mean(),
            "neighbours_agree": (clusters == neighbours.argmax(2)).float().mean(),
            "held_out_loss": self.head_losses.min(),
        }

    def clusters(self) -> nn.Module:
        """Returns the kept head, from features [B, D] to log probabilities [B, C]."""
        best = int(self.head_losses.argmin())
        return _as_clusters(*(each.chunk(self.heads)[best] for each in (self.classifier.weight, self.classifier.bias)))

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (ALL_IN_ONE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the sum over heads of (1 − λ) ln C: equal embeddings have the lowest loss where all p are 1 / C."""
        return self.heads * (1 - self.entropy_weight) * math.log(self._clusters)


class SelfLabel(Objective):
    """Backbone and one linear head, trained with :func:`self_label_loss` on from the kept head of SCAN.

    Args:
        backbone: the network to train on.
        clusters: number of clusters, C, that of SCAN.
        threshold: of the loss.
        balance: of the loss.
    """

    def __init__(self, backbone: Backbone, clusters: AtLeastTwo, threshold: PartialShare, balance: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.num_features, clusters)
        self.threshold, self.balance = threshold, balance

    def check(self, plan: Plan) -> None:
        """Requires a weak and a strong view."""
        plan.needs_views(2, 2)

    def from_another(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Takes the kept head out of a run of SCAN."""
        losses, found = state.get("head_losses"), dict(state)
        if losses is None:
            return found
        best = int(losses.argmin())
        heads = {name: found[name].chunk(len(losses))[best] for name in ("classifier.weight", "classifier.bias")}
        return {name: value for name, value in found.items() if name not in ("head_losses", "held_sums")} | heads

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward for each view; that of weak views has no gradient, and BatchNorm in training mode."""
        weak, strong = batch.views
        with torch.no_grad():
            features = self.backbone(weak)
            targets = self.classifier(features)
        logits = self.classifier(self.backbone(strong))
        loss = self_label_loss(targets, logits, self.threshold, self.balance)
        return Output(loss, features.detach(), self._metrics(targets.float(), logits.detach()))

    def _metrics(self, targets: Tensor, logits: Tensor) -> dict[str, Tensor]:
        clusters, certain, counts = _certain_clusters(targets, self.threshold)
        images = counts.sum()
        used = _entropy(counts / images.clamp(min=1)) / math.log(len(counts))
        return {
            "certain": certain.mean(),
            "cluster_entropy": torch.where(images > 0, used, 1.0),
            "views_agree": (clusters == logits.argmax(1)).float().mean(),
        }

    def clusters(self) -> nn.Module:
        """Returns the head, from features [B, D] to log probabilities [B, C]."""
        return _as_clusters(self.classifier.weight, self.classifier.bias)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the share of certain images, too: without one nothing is trained."""
        return (
            ALL_IN_ONE,
            MetricBound(
                "no-certain-image",
                "certain",
                0.001,
                1.0,
                "no image is certain enough to be trained on",
                "weights=RUN of SCAN with weights_of=all, that run for longer, or a lower objective.threshold",
            ),
        )


def _entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy over the last dimension, in nats; probabilities below 1e-8 count as 1e-8."""
    held = probabilities.clamp(min=SMALLEST)
    return -(held * held.log()).sum(-1)


@full_precision
def _probabilities_of(logits: Tensor) -> Tensor:
    """Returns the softmax over the last dimension."""
    return logits.softmax(-1)


@full_precision
def _mean_probabilities(logits: Tensor, share: Tensor) -> Tensor:
    """Returns mean probabilities [H, C] of logits [B, H, C], over all processes.

    ``share`` [B] is the weight of each image; the mean over processes of its sum is 1.
    """
    return distributed.mean((logits.softmax(-1) * share[:, None, None]).sum(0))


@full_precision
def _disagreement(logits: Tensor, others: Tensor) -> Tensor:
    """Returns −ln of the scalar product of two softmaxes over the last dimension, at most 100."""
    both = F.log_softmax(logits, -1) + F.log_softmax(others, -1)
    return -both.logsumexp(-1).clamp(min=-MOST)


@torch.no_grad()
def _certain_clusters(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the likeliest cluster of each image, and whether it is certain: likelier than ``threshold``.

    Args:
        logits: float32 or float64 [B, C].
        threshold: a probability.

    Returns:
        Clusters int64 [B]; 1 for an image that is certain, else 0 [B]; how many of these each cluster has, over all
        processes [C].
    """
    most, clusters = logits.softmax(1).max(1)
    certain = (most > threshold).to(logits.dtype)
    own = F.one_hot(clusters, logits.shape[1]).to(logits.dtype) * certain[:, None]
    return clusters, certain, distributed.total(own.sum(0))


def _as_clusters(weight: Tensor, bias: Tensor) -> nn.Module:
    """Returns a module from features [B, D] to log probabilities of clusters [B, C], with a copy of a linear layer."""
    linear = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype, device=weight.device)
    linear.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return nn.Sequential(linear, nn.LogSoftmax(1))

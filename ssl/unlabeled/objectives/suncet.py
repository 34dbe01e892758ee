"""SuNCEt: labelled images find their own class among each other; it fine-tunes PAWS's networks on CIFAR-10.

Assran et al. 2020, arXiv:2006.10803; after PAWS: arXiv:2104.13963. Official code: github.com/facebookresearch/suncet
(src/losses.py init_suncet_loss, src/snn_fine_tune.py).
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Temperature
from unlabeled.data.support import ClassBalanced
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_shapes
from unlabeled.objectives.parts.heads import paws_predictor, swav_projector
from unlabeled.objectives.parts.labels import check_labels
from unlabeled.objectives.parts.precision import full_precision


def suncet_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns −ln of the probability that a row finds its own class, mean over the local rows.

    A row finds another row of all processes with the softmax of their cosines (arXiv:2006.10803, eq. 1).

    Args:
        embeddings: [N, D], unnormalised, the same N on every process.
        labels: int64 [N].
        temperature: above 0.

    Returns:
        Scalar; ln((M − 1) / (k − 1)) when all M embeddings are equal, with k rows of each class.

    Raises:
        UserError: shapes that do not fit together, labels of another type, or a temperature that is not above 0.
    """
    return -class_log_probability(embeddings, labels, temperature).mean()


@full_precision
def class_log_probability(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns ln of the probability that each local row finds its own class [N]; 0 for the only row of a class."""
    given = {"embeddings": (embeddings, "ND"), "labels": (labels, "N")}
    check_shapes("suncet_loss", given, temperature=temperature)
    check_labels("suncet_loss", labels)
    z, everyone = F.normalize(embeddings, dim=1), distributed.gather(labels)
    numbers = torch.arange(len(everyone), device=z.device)
    itself = numbers[None] == numbers[distributed.rank() * len(z) :][: len(z), None]
    same = (labels[:, None] == everyone) & ~itself
    alone = ~same.any(1, keepdim=True)
    logits = (z @ distributed.gather(z).T / temperature).masked_fill(itself, -math.inf)
    return logits.masked_fill(~(same | alone), -math.inf).logsumexp(1) - logits.logsumexp(1)


class SuNCEt(Objective):
    """PAWS's backbone and heads, trained with :func:`suncet_loss` on the labelled images beside each batch alone.

    Its tensors are those of :class:`~unlabeled.objectives.paws.PAWS`, so that it goes on from a run of it. BatchNorm
    normalises by its statistics and keeps them, as officially (snn_fine_tune.py, init_model); its weights are trained.
    The images of the batch itself give features to online probes, and no loss.

    Args:
        backbone: the network to train.
        projection_hidden: width of each hidden layer of the projector.
        projection_dim: width of the embeddings.
        prediction_head: whether they pass through a further head, as PAWS's anchors do.
        temperature: of the softmax.
        support: the labelled images.
    """

    uses_labels = True  # those of the support

    def __init__(
        self,
        backbone: Backbone,
        projection_hidden: Sequence[Channels],
        projection_dim: Channels,
        prediction_head: bool,
        temperature: Temperature,
        support: ClassBalanced,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector: nn.Module = swav_projector(backbone.num_features, projection_hidden, projection_dim, True)
        self.predictor: nn.Module = paws_predictor(projection_dim) if prediction_head else nn.Identity()
        self.temperature, self.support = temperature, support

    def from_another(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Takes the state of PAWS as it is."""
        return dict(state)

    def train(self, mode: bool = True) -> "SuNCEt":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.training = False
        return self

    def check(self, plan: Plan) -> None:
        """Requires views for the labelled images, and another image of each class."""
        plan.needs_views(self.support.views)
        plan.needs_labels()
        if self._of_a_class < 2:
            raise UserError("objective.support.images_per_class=1: an image needs another of its class: give 2 or more")

    @property
    def _of_a_class(self) -> int:
        return self.support.images_per_class * self.support.views

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"temperature": self.temperature}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        support = batch.support
        if support is None or not support.views or support.labels is None:
            raise UserError("objective=suncet needs labelled images beside each batch: Batch.support, with labels")
        labels = support.labels.repeat(len(support.views))
        embeddings = self.head()(self.backbone(torch.cat(support.views)))
        found = class_log_probability(embeddings, labels, self.temperature)
        with torch.no_grad():
            features = self.backbone(batch.views[0])
        metrics = {"own_class": distributed.mean(found.detach().exp().mean())}
        return Output(-found.mean(), features, metrics, embeddings)

    def head(self) -> nn.Module:
        """Returns projector and prediction head, behind which PAWS compares images."""
        return nn.Sequential(self.projector, self.predictor)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the probability that a labelled image finds its own class: by chance nothing is learnt."""
        return (
            MetricBound(
                "labels-not-learnt",
                "own_class",
                1 / self.support.classes_per_batch,
                1.0,
                "labelled images are no nearer to those of their class than to others",
                "a look at the labels, optimizer.lr, and at weights=… with weights_of=all",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln((M − 1) / (k − 1)), of equal embeddings of M rows with k of each class."""
        return math.log((self._of_a_class * self.support.classes_per_batch - 1) / (self._of_a_class - 1))

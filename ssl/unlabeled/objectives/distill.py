"""Distillation without labels: a network learns to see images as a trained, usually larger one sees them.

Similarities with a queue follow SEED (Fang et al. 2021, arXiv:2101.04731; github.com/jacobswan1/SEED, seed/builder.py);
without a queue they are those within the batch, each network in its own space, as CompRess has it with two queues
(Koohpayegani et al. 2020, arXiv:2010.14713). lightly-train offers the same two families: similarities with a queue of
8192 at one temperature of 0.07 (``distillationv1``), and squared differences of projected features
(``distillationv2``). Both networks see the same view (Beyer et al. 2021, arXiv:2106.05237).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval, Len
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.backbones.frozen import FrozenNetwork
from unlabeled.core.ranges import Channels, Count, FilePath, Pixels, Temperature
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.contrast import log_sum_exp
from unlabeled.objectives.parts.heads import mlp
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.queue import KeyQueue

Match = Literal["cosine", "mse", "similarities"]
COMPARED = 256  # images of the global batch whose similarities the metrics look at


@full_precision
def feature_loss(student: Tensor, teacher: Tensor, match: Literal["cosine", "mse"]) -> Tensor:
    """Returns how far projected features are from the teacher's, mean over the local images.

    Args:
        student: [B, D], unnormalised.
        teacher: [B, D], unnormalised; gets no gradient.
        match: ``cosine``: 2 − 2·cos, the squared distance of unit vectors; ``mse``: the mean over D of squared
            differences.

    Returns:
        Scalar; 0 when they are equal.

    Raises:
        UserError: shapes that do not fit together, or another match.
    """
    check_shapes("feature_loss", {"student": (student, "BD"), "teacher": (teacher, "BD")})
    if match == "mse":
        return F.mse_loss(student, teacher.detach())
    if match != "cosine":
        raise UserError(f"feature_loss: match={match} is neither cosine nor mse")
    return 2 - 2 * (F.normalize(student, dim=1) * F.normalize(teacher.detach(), dim=1)).sum(1).mean()


@full_precision
def queue_similarity_loss(
    student: Tensor, teacher: Tensor, queue: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Returns the cross-entropy of similarities with the teacher's own embedding and a queue (SEED).

    Both networks' cosines with the same 1 + K teacher's embeddings become distributions; mean over the local images.

    Args:
        student: [B, D], projected, unnormalised.
        teacher: [B, D], of the same views, unnormalised; gets no gradient.
        queue: [K, D], the teacher's embeddings of earlier images, unit rows; it may change afterwards.
        student_temperature, teacher_temperature: of the two softmaxes, above 0.

    Returns:
        Scalar; the entropy of the teacher's distributions where the student's are equal to them.

    Raises:
        UserError: shapes that do not fit together, or a temperature that is not above 0.
    """
    given = {"student": (student, "BD"), "teacher": (teacher, "BD"), "queue": (queue, "KD")}
    check_shapes("queue_similarity_loss", given)
    check_range(
        "queue_similarity_loss", student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    s, t = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    queue = queue.detach().to(s.dtype)
    with torch.no_grad():
        wanted = torch.cat([(t * t).sum(1, keepdim=True), t @ queue.T], 1) / teacher_temperature
        p = F.softmax(wanted, dim=1)
        expected = p[:, :1] * t + p[:, 1:] @ queue  # −Σ p ln q needs of the candidates their sum alone
    s = s / student_temperature
    return (torch.logaddexp((s * t).sum(1), log_sum_exp(s, queue)) - (s * expected).sum(1)).mean()


@full_precision
def batch_similarity_loss(
    student: Tensor, teacher: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Returns the cross-entropy of similarities with the other images of all processes, each network in its own space.

    The student's are a softmax over cosines of its own embeddings, the teacher's over cosines of its own
    (CompRess, with the batch in place of its two queues); mean over the local images.

    Args:
        student: [B, D], unnormalised, the same B on every process.
        teacher: [B, E], of the same views, unnormalised; gets no gradient.
        student_temperature, teacher_temperature: of the two softmaxes, above 0.

    Returns:
        Scalar; ln(N − 1) when the student's embeddings are equal, with N images over all processes.

    Raises:
        UserError: shapes that do not fit together, or a temperature that is not above 0.
    """
    check_shapes("batch_similarity_loss", {"student": (student, "BD"), "teacher": (teacher, "BE")})
    check_range(
        "batch_similarity_loss", student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    s, t = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    predicted, wanted = s @ distributed.gather(s).T / student_temperature, t @ distributed.gather(t).T
    numbers = torch.arange(predicted.shape[1], device=s.device)
    itself = numbers[None] == numbers[distributed.rank() * len(s) :][: len(s), None]
    p = F.softmax((wanted / teacher_temperature).masked_fill(itself, -math.inf), dim=1)
    log_q = F.log_softmax(predicted.masked_fill(itself, -math.inf), dim=1)
    return -(p * log_q.masked_fill(itself, 0.0)).sum(1).mean()


@full_precision
def standardised(features: Tensor) -> Tensor:
    """Returns features [B, D] with mean 0 and deviation 1 of each column over the images of all processes.

    The mean of features behind a ReLU is most of their length: cosines of all pairs are near 1 with it, and what tells
    images apart is a small part of the loss. A column without variance becomes 0.
    """
    centred = features - distributed.mean(features.mean(0))
    variance = distributed.mean(centred.square().mean(0))
    return centred * variance.clamp(min=1e-12).rsqrt()


class Distill(Objective):
    """Backbone and projector that follow a frozen teacher; every view goes through both networks, alone.

    The backbone is what is evaluated and published. The teacher is in eval mode, gets the views as its own evaluation
    prepares images, and is in no checkpoint: the run keeps one copy of it in its folder.

    Args:
        backbone: the student.
        teacher: what the teacher is loaded from: a run's folder, a file, or what another library has.
        teacher_backbone, teacher_views: choices of ``conf/backbone`` and ``conf/views`` for a file that does not say
            them; the views' size, mean and std are used.
        teacher_size: height and width of the images that the teacher gets; None: those of its own evaluation.
        match: features by ``cosine`` or ``mse``, or ``similarities``.
        projector_layers: depth of the projector from the student's features to the teacher's width; 1 is linear.
        hidden_dim: width inside the projector.
        standardise: whether the teacher's features are standardised over each batch: see :func:`standardised`.
        queue_size: teacher's embeddings of earlier images that similarities are taken with; None: the batch.
        student_temperature, teacher_temperature: of similarities.
        teacher_sha256: of the teacher's file; it is compared, and filled in where it is None.
        teacher_width: features of the teacher; filled in by the run.
    """

    projector: nn.Module | None
    queue: KeyQueue | None
    frozen: FrozenNetwork | None

    def __init__(
        self,
        backbone: Backbone,
        teacher: FilePath,
        teacher_backbone: str | None,
        teacher_views: str | None,
        teacher_size: Pixels | None,
        match: Match,
        projector_layers: Annotated[int, Interval(ge=1, le=10)],
        hidden_dim: Channels,
        standardise: bool,
        queue_size: Count | None,
        student_temperature: Temperature,
        teacher_temperature: Temperature,
        teacher_sha256: Annotated[str, Len(64, 64)] | None = None,
        teacher_width: Channels | None = None,
    ) -> None:
        super().__init__()
        if match not in ("cosine", "mse", "similarities"):
            raise UserError(f"objective.match={match}: allowed are cosine, mse and similarities")
        self.backbone, self.teacher, self.teacher_size = backbone, teacher, teacher_size
        self.teacher_backbone, self.teacher_views, self.teacher_sha256 = teacher_backbone, teacher_views, teacher_sha256
        self.match, self.student_temperature, self.teacher_temperature = match, student_temperature, teacher_temperature
        self.projector_layers, self.hidden_dim, self.standardise = projector_layers, hidden_dim, standardise
        self.queue_size = queue_size if match == "similarities" else None
        self.projector = self.queue = self.frozen = None
        if teacher_width is not None:
            self._build_heads(teacher_width)

    def _build_heads(self, width: int) -> None:
        widths = [self.backbone.num_features, *[self.hidden_dim] * (self.projector_layers - 1), width]
        self.projector = mlp(widths, bias_hidden=True, bias_last=True)
        self.queue = None if self.queue_size is None else KeyQueue(self.queue_size, width)

    def take_teacher(self, teacher: FrozenNetwork, uses_labels: bool) -> None:
        """Takes the network to learn from, and builds the projector to its features.

        Args:
            teacher: with its weights.
            uses_labels: whether it was trained with labels: the student's numbers are then not those of a method
                without any.
        """
        self.frozen, self.uses_labels = teacher, uses_labels
        self._build_heads(teacher.num_features)

    def check(self, plan: Plan) -> None:
        plan.needs_views(1)
        if self.match == "similarities" and not self.queue_size and plan.batch_size < 3:
            raise UserError(f"batch_size={plan.batch_size}: similarities within a batch need 3 images at least")
        if self.queue_size is not None and self.queue_size > plan.images:
            raise UserError(
                f"objective.queue_size={self.queue_size}: there are {plan.images} training images: give no more than"
                " that, or null for similarities within the batch"
            )

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        if self.match != "similarities":
            return {}
        values = {"temperature": self.student_temperature, "teacher_temperature": self.teacher_temperature}
        fill = {"queue_fill": min(1.0, progress.batch * plan.batch_size / self.queue_size)} if self.queue_size else {}
        return values | fill

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compares both networks' outputs for each view; then the teacher's for the first view enter the queue."""
        if self.frozen is None or self.projector is None:
            raise UserError("objective.teacher: no network was handed over by take_teacher")
        features = [self.backbone(view) for view in batch.views]
        students = [self.projector(each) for each in features]
        teachers = [self.frozen(view) for view in batch.views]
        teachers = [standardised(each) for each in teachers] if self.standardise else teachers
        losses = [self._loss(*pair) for pair in zip(students, teachers, strict=True)]
        if self.training and self.queue is not None:
            self.queue.enqueue(teachers[0])
        metrics = similarity_metrics(students[0].detach(), teachers[0])
        return Output(torch.stack(losses).mean(), features[0].detach(), metrics, students[0], teachers[0])

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.match != "similarities":
            return feature_loss(student, teacher, self.match)
        temperatures = self.student_temperature, self.teacher_temperature
        if self.queue is None:
            return batch_similarity_loss(student, teacher, *temperatures)
        return queue_similarity_loss(student, teacher, self.queue.keys, *temperatures)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds what the teacher says, and whether the student says the same."""
        return (
            MetricBound(
                "teacher-says-nothing",
                "teacher_alike",
                -1.0,
                0.999,
                "the teacher gives all images the same features: it has collapsed, or does not know such images",
                "unlabeled evaluate of the teacher; a look at the size, mean and std that the first lines say",
            ),
            MetricBound(
                "teacher-not-followed",
                "similarity_correlation",
                0.02,
                1.001,
                "which images are near to each other for the student has nothing to do with the teacher",
                "a look at optimizer.lr; objective.match=cosine, which says most at the start",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the loss where the student's similarities are all equal; distances of features have no such value.

        ln(1 + K) with a queue of K, ln(N − 1) within a batch of N.
        """
        if self.match != "similarities":
            return None
        return math.log(1 + self.queue_size if self.queue_size else plan.batch_size - 1)


@torch.no_grad()
@full_precision
def similarity_metrics(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Returns ``similarity_correlation`` and ``teacher_alike`` of the first :data:`COMPARED` images of all processes.

    The first is Pearson's correlation between the cosines of pairs of images for the student, [B, D], and for the
    teacher, [B, E]: 1 where both find the same images alike, 0 where the student's are all equal. The second is the
    mean of the teacher's cosines: 1 where it gives all images the same features.
    """
    student, teacher = (distributed.gather(rows)[:COMPARED] for rows in (student, teacher))
    n = len(student)
    apart = 1 - torch.eye(n, device=student.device, dtype=torch.promote_types(student.dtype, torch.float32))
    pairs = max(1, n * (n - 1))
    ours, theirs = (F.normalize(rows, dim=1) for rows in (student, teacher))
    ours, theirs = (ours @ ours.T * apart, theirs @ theirs.T * apart)
    alike = theirs.sum() / pairs
    ours, theirs = (ours - ours.sum() / pairs) * apart, (theirs - alike) * apart
    lengths = (ours.norm() * theirs.norm()).clamp(min=1e-8)
    return {"similarity_correlation": (ours * theirs).sum() / lengths, "teacher_alike": alike}

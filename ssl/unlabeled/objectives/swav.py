"""SwAV: each crop of an image predicts the prototypes to which the image's other crops are assigned.

Caron et al. 2020, arXiv:2006.09882. Official code: github.com/facebookresearch/swav (main_swav.py). SEER is SwAV with a
RegNet on uncurated images: Goyal et al. 2021, arXiv:2103.01988; configurations in github.com/facebookresearch/vissl.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval, MinLen
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Distinct, Epochs, NoneOrMore, Temperature
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Check, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts.arguments import check_count, check_range, check_shapes
from unlabeled.objectives.parts.codes import sinkhorn as sinkhorn
from unlabeled.objectives.parts.crops import by_resolution
from unlabeled.objectives.parts.heads import swav_projector
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def swapped_prediction(
    scores: Sequence[Tensor],
    assigned: Sequence[int],
    temperature: float,
    epsilon: float,
    iterations: int,
    queue_scores: Sequence[Tensor] | None = None,
) -> Tensor:
    """Returns the cross-entropy between the codes of each assigned crop and the predictions of every other crop.

    arXiv:2006.09882, eq. 2 and 6: the mean over assigned crops, over the other crops, and over the B local images. A
    crop never predicts its own code.

    Args:
        scores: [B, K] for each crop, cosines with the prototypes.
        assigned: positions of the crops that give codes.
        temperature: of the predictions.
        epsilon, iterations: of :func:`sinkhorn`.
        queue_scores: [Q, K] for each assigned crop: earlier samples that are assigned together with the batch and then
            dropped. On several processes each gives its part of the queue; only the joined queue matters.

    Returns:
        Scalar; ln K when all scores are equal.

    Raises:
        UserError: crops of different shapes, indices of crops that do not exist, or a queue for other crops than those
            assigned.
    """
    codes = compute_codes(scores, assigned, epsilon, iterations, queue_scores)
    return code_prediction_loss(scores, assigned, codes, temperature)


@full_precision
def compute_codes(
    scores: Sequence[Tensor],
    assigned: Sequence[int],
    epsilon: float,
    iterations: int,
    queue_scores: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Returns codes [B, K] of each assigned crop: the first half of :func:`swapped_prediction`, same arguments."""
    _check_crops(scores, assigned, queue_scores)
    queued = [[] for _ in assigned] if queue_scores is None else [[rows] for rows in queue_scores]
    all_scores = [torch.cat([*rows, scores[crop]]) for rows, crop in zip(queued, assigned, strict=True)]
    images = len(scores[assigned[0]])
    return [sinkhorn(rows, epsilon, iterations)[-images:] for rows in all_scores]


@full_precision
def code_prediction_loss(
    scores: Sequence[Tensor], assigned: Sequence[int], codes: Sequence[Tensor], temperature: float
) -> Tensor:
    """Returns the mean cross-entropy of codes and predictions: the second half of :func:`swapped_prediction`."""
    _check_crops(scores, assigned, None)
    check_range("swapped_prediction", temperature=temperature)
    fitting = {"scores": (scores[0], "BK")} | {f"codes[{place}]": (code, "BK") for place, code in enumerate(codes)}
    check_shapes("swapped_prediction", fitting)
    if len(codes) != len(assigned):
        raise UserError(f"swapped_prediction: {len(codes)} codes for {len(assigned)} assigned crops")
    predictions = [F.log_softmax(crop / temperature, dim=1) for crop in scores]
    losses = []
    for crop, code in zip(assigned, codes, strict=True):
        others = [prediction for number, prediction in enumerate(predictions) if number != crop]
        losses += [-(code * prediction).sum(1).mean() for prediction in others]
    return torch.stack(losses).mean()


class FeatureQueue(nn.Module):
    """Holds the newest embeddings of all processes, the latest first.

    Every process holds the whole queue and scores its part of it: the queue is the same for any number of processes, a
    checkpoint of the first process has all of it, and DDP's broadcast of buffers does not change it.

    Args:
        crops: how many crops of an image give codes; each has its own rows.
        length: rows per crop, over all processes.
        dim: width of the embeddings.
    """

    embeddings: Tensor  # [crops, length, dim], unit rows; zeros where nothing has been written
    filled: Tensor  # int64 scalar, rows that have been written

    def __init__(self, crops: int, length: int, dim: int) -> None:
        super().__init__()
        check_count("FeatureQueue", crops=crops, length=length, dim=dim)
        self.register_buffer("embeddings", torch.zeros(crops, length, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def is_full(self) -> bool:
        """Returns whether every row has been written."""
        return int(self.filled) == self.embeddings.shape[1]

    def share(self) -> Tensor:
        """Returns the rows that this process scores, [crops, length / processes, dim]."""
        return self.embeddings.tensor_split(distributed.world_size(), dim=1)[distributed.rank()]

    def enqueue(self, embeddings: Tensor) -> None:
        """Puts the batch of all processes in front, in the order of the global batch; drops the oldest rows.

        Args:
            embeddings: [crops, B, dim], of this process.

        Raises:
            UserError: another number of crops, or another width.
        """
        check_shapes("FeatureQueue.enqueue", {"queue": (self.embeddings, "CQD"), "embeddings": (embeddings, "CBD")})
        newest = distributed.gather(embeddings.detach().transpose(0, 1)).transpose(0, 1)
        length = self.embeddings.shape[1]
        self.embeddings.copy_(torch.cat([newest.to(self.embeddings), self.embeddings], 1)[:, :length])
        self.filled.add_(newest.shape[1]).clamp_(max=length)


class SwAV(Objective):
    """Backbone, projector and prototypes, trained with :func:`swapped_prediction`.

    Args:
        backbone: the network to pretrain.
        projection_hidden: width of each hidden layer of the projector.
        projection_dim: width of the embeddings.
        projection_batch_norm: whether the projector has BatchNorm; its statistics are over all crops together.
        prototypes: their number; about ten times the expected number of classes (swav issue 37).
        assigned: positions of the views that give codes, the large ones.
        temperature: of the predictions.
        epsilon, iterations: of :func:`sinkhorn`.
        freeze_prototypes_epochs: prototypes keep their initial values until then; may be a fraction of an epoch.
        queue_length: stored embeddings per assigned view, over all processes; 0 for no queue.
        queue_from_epoch: the queue is filled from then on, and used as soon as it is full.

    Raises:
        UserError: values that cannot work.
    """

    def __init__(
        self,
        backbone: Backbone,
        projection_hidden: Sequence[Channels],
        projection_dim: Channels,
        projection_batch_norm: bool,
        prototypes: Channels,
        assigned: Annotated[Sequence[NoneOrMore], MinLen(1), Distinct()],
        temperature: Temperature,
        epsilon: Temperature,
        iterations: Annotated[int, Interval(ge=1, le=10_000)],
        freeze_prototypes_epochs: Epochs,
        queue_length: NoneOrMore,
        queue_from_epoch: Epochs,
    ) -> None:
        super().__init__()
        _check_settings(assigned, epsilon, iterations)
        self.backbone = backbone
        self.projector = swav_projector(backbone.num_features, projection_hidden, projection_dim, projection_batch_norm)
        self.prototypes = nn.Linear(projection_dim, prototypes, bias=False)
        self.queue = FeatureQueue(len(assigned), queue_length, projection_dim) if queue_length else None
        self.assigned, self.temperature = list(assigned), temperature
        self.epsilon, self.iterations = epsilon, iterations
        self.freeze_prototypes_epochs, self.queue_from_epoch = freeze_prototypes_epochs, queue_from_epoch
        self.was_full = False  # whether the queue was full when a step of this process began
        self.register_load_state_dict_post_hook(_reset_was_full)  # type: ignore[no-untyped-call]
        self._normalise_prototypes()

    def check(self, plan: Plan) -> None:
        """Requires each assigned view, another view beside it, and a queue that fills within an epoch."""
        plan.needs_views(max(2, max(self.assigned) + 1))
        images = plan.images // plan.batch_size * plan.batch_size
        length = self._queue_length
        if length > images:
            raise UserError(f"objective.queue_length={length} is longer than an epoch of {images} images")

    def plan_warnings(self, plan: Plan) -> list[Check]:
        """Checks that batch and queue suffice for the prototypes, and that the queue is shorter than the data."""
        length, prototypes = self._queue_length, self.prototypes.out_features
        samples = Check(
            "at least a tenth as many samples as prototypes",
            plan.batch_size + length >= prototypes / 10,
            f"batch_size={plan.batch_size}, objective.queue_length={length}, objective.prototypes={prototypes}",
            f"too few to use all prototypes: give objective.prototypes={10 * plan.batch_size}, or a queue",
        )
        queue = Check(
            "a queue shorter than the data",
            length < plan.images,
            f"objective.queue_length={length}, training images {plan.images}",
            f"images meet their own earlier embeddings: give objective.queue_length={plan.images // 10}",
        )
        return [samples] if self.queue is None else [samples, queue]

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        values = {"temperature": self.temperature, "epsilon": self.epsilon}
        values["prototypes_trained"] = float(self._trains_prototypes(progress))
        if self.queue is None:
            return values
        fill = self._fill(progress, plan.batch_size)
        return values | {
            "queue_fill": fill,
            "queue_age": fill * self._queue_length / (plan.batch_size * progress.parts),
        }

    def _fill(self, progress: Progress, batch_size: int) -> float:
        """Returns the share of the queue that is written when a step begins."""
        steps = range(progress.step)
        first = bisect.bisect_left(steps, True, key=lambda step: self._queues(progress._replace(step=step)))
        batches = progress.batch - first * progress.parts
        return min(1.0, max(0, batches) * batch_size / self._queue_length)

    @property
    def _queue_length(self) -> int:
        return 0 if self.queue is None else self.queue.embeddings.shape[1]

    def _queues(self, progress: Progress) -> bool:
        """Returns whether the batch of a step goes to the queue, whose codes enter the loss once it is full."""
        return progress.epoch >= self.queue_from_epoch

    def _trains_prototypes(self, progress: Progress) -> bool:
        return progress.epoch >= self.freeze_prototypes_epochs

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one backbone forward per resolution, one projector forward over all crops, as in the official code."""
        features = by_resolution(self.backbone, batch.views)
        projected = self.projector(features)
        embeddings = _unit_rows(projected)
        scores = _dot_products(embeddings, self.prototypes.weight).chunk(len(batch.views))
        queue_scores = self._queue_scores(progress)
        codes = compute_codes(scores, self.assigned, self.epsilon, self.iterations, queue_scores)
        loss = code_prediction_loss(scores, self.assigned, codes, self.temperature)
        self._enqueue(embeddings.chunk(len(batch.views)), progress)
        metrics = self._metrics(scores, codes, queue_scores)
        return Output(loss, self._first_crop_features(features, batch), metrics, projected, codes[0])

    def _queue_scores(self, progress: Progress) -> list[Tensor] | None:
        """Returns cosines of this process's part of the queue with the present prototypes; None if not used yet."""
        if self.queue is None or not self._queues(progress) or not self._is_full(self.queue, progress):
            return None
        return [_dot_products(rows, self.prototypes.weight.detach()) for rows in self.queue.share()]

    def _is_full(self, queue: FeatureQueue, progress: Progress) -> bool:
        """Asks the device until the answer is yes; a step whose loss is not finite has its writes undone."""
        full = self.was_full or queue.is_full
        self.was_full = self.was_full or (full and progress.part == 0)
        return full

    def _enqueue(self, embeddings: Sequence[Tensor], progress: Progress) -> None:
        """Adds the batch after its codes are made: the queue never holds the batch that it is used with."""
        if self.queue is not None and self.training and self._queues(progress):
            self.queue.enqueue(torch.stack([embeddings[crop] for crop in self.assigned]))

    def _first_crop_features(self, features: Tensor, batch: Batch) -> Tensor:
        """Returns the features of the first large crop, for probes."""
        return features.detach().chunk(len(batch.views))[self.assigned[0]]

    def _metrics(
        self, scores: Sequence[Tensor], codes: Sequence[Tensor], queue_scores: list[Tensor] | None
    ) -> dict[str, Tensor]:
        """Returns how many prototypes the predictions and codes are spread over, from 1 to all; and the queue's use."""
        predictions = F.softmax(scores[self.assigned[0]].detach() / self.temperature, dim=1)
        metrics = {"effective_prototypes": _spread(predictions), "effective_codes": _spread(codes[0].detach())}
        if self.queue is not None:
            metrics["queue_in_use"] = predictions.new_full((), float(queue_scores is not None))
        return metrics

    def after_backward(self, progress: Progress) -> None:
        """Removes the prototypes' gradients while frozen: with a gradient of 0, momentum and decay would still act."""
        if not self._trains_prototypes(progress):
            self.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        """Normalises the prototypes, so that they have length 1 in every forward."""
        if self._trains_prototypes(progress):
            self._normalise_prototypes()

    def written_after_step(self) -> Sequence[Tensor]:
        return (self.prototypes.weight,)

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        """Sets the prototypes to length 1 after the update; the official code does so before the next forward.

        Under FSDP that would have no effect, as a forward sees a gathered copy of the shards that are optimised.
        """
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the spread of codes: Sinkhorn spreads them over all prototypes, whatever the network does."""
        k = self.prototypes.out_features
        return (
            MetricBound(
                "codes-not-balanced",
                "effective_codes",
                k / 2,
                k + 0.5,
                "few prototypes get all images, the Sinkhorn step is missing or ends too early",
                "more objective.iterations or a larger objective.epsilon",
            ),
        )

    def prototype_scores(self, features: Tensor) -> Tensor:
        return _dot_products(_unit_rows(self.projector(features)), self.prototypes.weight)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln K."""
        return math.log(self.prototypes.out_features)


def _spread(probabilities: Tensor) -> Tensor:
    """Returns the exponential of the entropy of the mean over the rows [B, K] of all processes."""
    spread: Tensor = torch.special.entr(distributed.mean(probabilities.mean(0))).sum().exp()
    return spread


def _reset_was_full(objective: nn.Module, keys: object) -> None:
    """Forgets that the queue was full: a loaded one may be empty."""
    objective.was_full = False  # type: ignore[assignment]


@full_precision
def _unit_rows(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


@full_precision
def _dot_products(rows: Tensor, others: Tensor) -> Tensor:
    return rows @ others.T


def _check_crops(scores: Sequence[Tensor], assigned: Sequence[int], queue_scores: Sequence[Tensor] | None) -> None:
    caller, crops = "swapped_prediction", len(scores)
    if crops < 2 or not assigned or len({*assigned}) < len(assigned) or not {*assigned} <= {*range(crops)}:
        raise UserError(f"{caller}: assigned={list(assigned)} of {crops} crops: give some of at least 2 crops")
    check_shapes(caller, {f"scores[{number}]": (crop, "BK") for number, crop in enumerate(scores)})
    if queue_scores is None:
        return
    if len(queue_scores) != len(assigned):
        raise UserError(f"{caller}: {len(queue_scores)} queue_scores for {len(assigned)} assigned crops: give one each")
    queued = {f"queue_scores[{number}]": (rows, "QK") for number, rows in enumerate(queue_scores)}
    check_shapes(caller, {**queued, "scores[0]": (scores[0], "BK")}, empty=True)


def _check_settings(assigned: Sequence[int], epsilon: float, iterations: int) -> None:
    if not assigned or min(assigned) < 0 or len(set(assigned)) < len(assigned):
        raise UserError(f"objective.assigned={list(assigned)}: give at least one view by its number, each once, from 0")
    if epsilon <= 0 or iterations < 1:
        raise UserError(f"objective.epsilon={epsilon} must be above 0, objective.iterations={iterations} at least 1")

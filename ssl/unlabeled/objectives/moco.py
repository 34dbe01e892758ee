"""MoCo: a view must find the key of its other view among the keys of a momentum encoder.

v1: He et al. 2019, arXiv:1911.05722. v2: Chen et al. 2020, arXiv:2003.04297. Official code:
github.com/facebookresearch/moco. v3: Chen et al. 2021, arXiv:2104.02057, github.com/facebookresearch/moco-v3.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Count, Layers, Share, Temperature
from unlabeled.core.seeding import derive_seed
from unlabeled.distributed.batchnorm import split_batchnorm
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Check, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema
from unlabeled.objectives.parts.arguments import check_shapes
from unlabeled.objectives.parts.contrast import log_sum_exp
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.queue import KeyQueue as KeyQueue
from unlabeled.objectives.parts.signs import VIEWS_ALIKE

_SHUFFLE = 0x5EAF  # keeps the permutations apart from the draws of the views, which mix (seed, step, view)


@full_precision
def queue_contrast(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Returns InfoNCE over the positive key and the queue (arXiv:1911.05722, eq. 1), mean over the local queries.

    Args:
        q: [B, D], queries, unnormalised.
        k: [B, D], the key of each query, unnormalised; gets no gradient.
        queue: [K, D], unit rows, before ``k`` is enqueued; gets no gradient and may change afterwards.
        temperature: above 0.

    Returns:
        Scalar; ln(K+1) when all embeddings are equal.

    Raises:
        UserError: shapes that do not fit together, or a temperature that is not above 0.
    """
    check_shapes("queue_contrast", {"q": (q, "BD"), "k": (k, "BD"), "queue": (queue, "KD")}, temperature=temperature)
    q, k = F.normalize(q, dim=1) / temperature, F.normalize(k.detach(), dim=1)
    positive = (q * k).sum(1)
    return (torch.logaddexp(positive, log_sum_exp(q, queue.detach())) - positive).mean()


@full_precision
def batch_contrast(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    """Returns MoCo v3's loss (arXiv:2104.02057, Algorithm 1): ctr(q1, k2) + ctr(q2, k1), a sum, not a mean.

    Negatives of a query are the keys of the other view of the other images of all processes.

    Args:
        q1, q2: [B, D], queries of the two views, unnormalised, the same B on every process.
        k1, k2: [B, D], their keys, unnormalised; get no gradient.
        temperature: above 0.

    Returns:
        Scalar; 2·2T·ln N when all embeddings are equal, with N images over all processes.

    Raises:
        UserError: shapes that do not fit together, or a temperature that is not above 0.
    """
    check_shapes(
        "batch_contrast",
        {"q1": (q1, "BD"), "q2": (q2, "BD"), "k1": (k1, "BD"), "k2": (k2, "BD")},
        temperature=temperature,
    )
    return _one_way(q1, k2, temperature) + _one_way(q2, k1, temperature)


def _one_way(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Returns 2T·CE; the factor makes the size of the gradient depend less on the temperature."""
    q, k = F.normalize(q, dim=1) / temperature, F.normalize(k.detach(), dim=1)
    return 2 * temperature * (log_sum_exp(q, distributed.gather(k)) - (q * k).sum(1)).mean()


@torch.no_grad()
def encode_shuffled(encode: Callable[[Tensor], Tensor], images: Tensor, seed: int) -> Tensor:
    """Encodes another share of the global batch and returns this one's rows: ShuffleBN (arXiv:1911.05722, section 3.3).

    BatchNorm statistics then come from other images than the query's, and do not reveal the positive.

    Args:
        encode: [B, ...] → [B, D]; gets no gradient.
        images: [B, ...], of this process.
        seed: of the permutation of the global batch, the same on every process.

    Returns:
        [B, D], row i belongs to ``images[i]``.
    """
    generator, total = torch.Generator().manual_seed(seed), len(images) * distributed.world_size()
    # On the CPU, whatever torch's default device is; pinned, or the host would wait for a GPU.
    permutation = torch.randperm(total, generator=generator, device="cpu", pin_memory=images.is_cuda)
    permutation = permutation.to(images.device, non_blocking=True)
    mine = slice(distributed.rank() * len(images), (distributed.rank() + 1) * len(images))
    encoded = distributed.gather(encode(distributed.gather(images)[permutation[mine]]))
    return encoded[permutation.argsort()[mine]]


class MoCo(Objective):
    """MoCo v1 and v2: :func:`queue_contrast` against a queue of keys.

    Both encoders compute BatchNorm statistics over ``bn_splits`` parts of the global batch, for keys over shuffled
    parts, as on that many GPUs with ShuffleBN. So the result is the same for one process and several.

    Args:
        backbone: the network to pretrain; its BatchNorms are replaced by split ones if ``bn_splits`` is above 1.
        projection_layers: depth of the projector, 1 (linear) in v1 and 2 in v2.
        projection_dim: width of the embeddings, D.
        temperature: of the softmax.
        momentum: of the momentum encoder.
        queue_size: number of keys, K.
        symmetric: use each view once as query and once as key, and add the two losses (CIFAR demo).
        bn_splits: parts of the global batch with BatchNorm statistics of their own; 1 leaves BatchNorm as it is.
        projection_hidden: width of the projector's hidden layers; None: that of the features.
        final_momentum: to which ``momentum`` goes by half a cosine; None: it is constant.
        two_queues: if symmetric, a queue for the keys of each view, as in MoCo v2+ of solo-learn.
        direction_mean: if symmetric, the mean of the two losses and not their sum, as there.

    Raises:
        UserError: an argument that cannot work.
    """

    def __init__(
        self,
        backbone: Backbone,
        projection_layers: Layers,
        projection_dim: Channels,
        temperature: Temperature,
        momentum: Share,
        queue_size: Count,
        symmetric: bool,
        bn_splits: Count,
        projection_hidden: Channels | None = None,
        final_momentum: Share | None = None,
        two_queues: bool = False,
        direction_mean: bool = False,
    ) -> None:
        super().__init__()
        _check(momentum, projection_layers)
        _check_directions(symmetric, two_queues, direction_mean)
        if bn_splits < 1:
            raise UserError(f"objective.bn_splits={bn_splits}: must be at least 1")
        if bn_splits > 1:
            split_batchnorm(backbone, bn_splits)
        self.backbone = backbone
        self.projector: nn.Module = moco_projector(
            backbone.num_features, projection_layers, projection_dim, projection_hidden
        )
        self.momentum_backbone = ema.frozen_copy(self.backbone)
        self.momentum_projector: nn.Module = ema.frozen_copy(self.projector)
        self.queue = KeyQueue(queue_size, projection_dim)  # with two queues: of the second view's keys
        self.first_view_queue = KeyQueue(queue_size, projection_dim) if two_queues else None
        self.temperature, self.momentum, self.final_momentum = temperature, momentum, final_momentum
        self.symmetric, self.bn_splits, self.direction_mean = symmetric, bn_splits, direction_mean

    def check(self, plan: Plan) -> None:
        """Requires two views, a queue no longer than the data set, and ``bn_splits`` equal parts over all processes."""
        plan.needs_views(2, 2)
        size, splits = len(self.queue.keys), self.bn_splits
        if size > plan.images:
            raise UserError(
                f"objective.queue_size={size}: there are {plan.images} training images, allowed: up to that"
            )
        if splits > 1 and splits % plan.processes:
            raise UserError(f"objective.bn_splits={splits}: must be a multiple of the {plan.processes} processes")
        if plan.batch_size % splits:
            raise UserError(f"batch_size={plan.batch_size}: must be a multiple of objective.bn_splits={splits}")

    def plan_warnings(self, plan: Plan) -> list[Check]:
        size, shorter = len(self.queue.keys), 1 << max(0, (plan.images - 1).bit_length() - 1)
        return [
            Check(
                "a queue shorter than the data",
                size < plan.images,
                f"objective.queue_size={size}, training images {plan.images}",
                f"the images at hand have their own earlier keys as negatives: give objective.queue_size={shorter}",
            )
        ]

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        """Returns ``queue_fill``, the share of keys that come from images (others are random), and ``queue_age`` in
        steps.
        """
        one_of_two = self.symmetric and self.first_view_queue is None
        size, keys_per_batch = len(self.queue.keys), plan.batch_size * (1 + one_of_two)
        fill = min(1.0, progress.batch * keys_per_batch / size)
        age = fill * size / (keys_per_batch * progress.parts)
        momentum = self.momentum if self.final_momentum is None else self._momentum_at(progress, self.final_momentum)
        return {"momentum": momentum, "temperature": self.temperature, "queue_fill": fill, "queue_age": age}

    def _momentum_at(self, progress: Progress, final: float) -> float:
        return ema.momentum_at(progress.fraction, self.momentum, final)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs the momentum encoder first, with the weights before this step; fills the queue after the logits."""
        x1, x2 = batch.views
        if self.training and progress.part == 0:  # once a step
            final = self.final_momentum
            momentum = self.momentum if final is None else self._momentum_at(progress, final)
            ema.update(self.momentum_backbone, self.backbone, momentum)
            ema.update(self.momentum_projector, self.projector, momentum)
        features, seeds = self.backbone(x1), (progress.seed, progress.batch)

        def encode(images: Tensor) -> Tensor:
            keys: Tensor = self.momentum_projector(self.momentum_backbone(images))
            return keys

        q1, k2 = self.projector(features), encode_shuffled(encode, x2, derive_seed(*seeds, 0, _SHUFFLE))
        similarity = F.cosine_similarity(q1.detach().float(), k2.float()).mean()
        loss, keys = queue_contrast(q1, k2, self.queue.keys, self.temperature), [(self.queue, k2)]
        if self.symmetric:
            queue = self.queue if self.first_view_queue is None else self.first_view_queue
            q2, k1 = self.projector(self.backbone(x2)), encode_shuffled(encode, x1, derive_seed(*seeds, 1, _SHUFFLE))
            loss, keys = loss + queue_contrast(q2, k1, queue.keys, self.temperature), [(queue, k1), *keys]
        if self.training:
            for queue, k in keys:  # one by one: the order in the queue is then that of the global batch
                queue.enqueue(k)
        loss = loss / 2 if self.direction_mean else loss
        return Output(loss, features.detach(), {"positive_similarity": similarity}, q1, k2)

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return (self.momentum_backbone, self.backbone), (self.momentum_projector, self.projector)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (VIEWS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns ln(K+1), twice that for the sum of both directions; a queue that is still random gives less."""
        return (1 + (self.symmetric and not self.direction_mean)) * math.log(len(self.queue.keys) + 1)


class MoCoV3(Objective):
    """MoCo v3: :func:`batch_contrast` between predictions and the keys of a momentum encoder, without a queue.

    The official code uses BatchNorm over the global batch: trainer.sync_batchnorm=true.

    Args:
        backbone: the network to pretrain.
        projection_layers: depth of the projector, 2 with a ResNet and 3 with a ViT.
        hidden_dim: width inside projector and predictor.
        projection_dim: width of the embeddings.
        predictor_norm: end the predictor in a BatchNorm without scale and bias; false for a ResNet, true for a ViT.
        temperature: of the softmax.
        momentum: of the momentum encoder at the start; rises to 1 by half a cosine.
        freeze_patch_projection: keep a ViT's patch projection random, for stability (section 4).

    Raises:
        UserError: an argument that cannot work, with this backbone or at all.
    """

    def __init__(
        self,
        backbone: Backbone,
        projection_layers: Layers,
        hidden_dim: Channels,
        projection_dim: Channels,
        predictor_norm: bool,
        temperature: Temperature,
        momentum: Share,
        freeze_patch_projection: bool,
    ) -> None:
        super().__init__()
        _check(momentum, projection_layers)
        if freeze_patch_projection:
            _freeze_patch_projection(backbone)
        self.backbone = backbone
        widths = [backbone.num_features, *[hidden_dim] * (projection_layers - 1), projection_dim]
        self.projector: nn.Module = moco_v3_head(widths, last_norm=True)
        self.predictor: nn.Module = moco_v3_head([projection_dim, hidden_dim, projection_dim], last_norm=predictor_norm)
        self.momentum_backbone = ema.frozen_copy(self.backbone)
        self.momentum_projector: nn.Module = ema.frozen_copy(self.projector)
        self.temperature, self.momentum = temperature, momentum

    def check(self, plan: Plan) -> None:
        plan.needs_views(2, 2)
        plan.needs_negatives()

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"momentum": self._momentum_at(progress), "temperature": self.temperature}

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs one forward per view, so that BatchNorm sees views separately, as in the official code."""
        x1, x2 = batch.views
        features = self.backbone(x1)
        q1, q2 = self._predict(features), self._predict(self.backbone(x2))
        momentum = self._momentum_at(progress)
        if self.training and progress.part == 0:  # once a step
            ema.update(self.momentum_backbone, self.backbone, momentum)
            ema.update(self.momentum_projector, self.projector, momentum)
        k1, k2 = self._keys(x1), self._keys(x2)
        loss = batch_contrast(q1, q2, k1, k2, self.temperature)
        similarity = F.cosine_similarity(q1.detach().float(), k2.float()).mean()
        metrics = {"positive_similarity": similarity, "momentum": loss.new_full((), momentum)}
        return Output(loss, features.detach(), metrics, q1, k2)

    def _predict(self, features: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(features))
        return prediction

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        keys: Tensor = self.momentum_projector(self.momentum_backbone(images))
        return keys

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return (self.momentum_backbone, self.backbone), (self.momentum_projector, self.projector)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        return (VIEWS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns 2·2T·ln N for a global batch of N images."""
        return 4 * self.temperature * math.log(plan.batch_size)


def moco_projector(
    in_features: int, layers: int, out_features: int, hidden_features: int | None = None
) -> nn.Sequential:
    """Builds linear layers with bias and ReLU between them, no BatchNorm, torch's initial weights (moco/builder.py).

    ``hidden_features`` is the width of hidden layers; None: that of the input, as officially.
    """
    widths = [in_features, *[hidden_features or in_features] * (layers - 1)]
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules, nn.Linear(widths[-1], out_features))


def moco_v3_head(widths: list[int], last_norm: bool) -> nn.Sequential:
    """Builds linear layers without bias, BatchNorm and ReLU between them (facebookresearch/moco-v3, moco/builder.py).

    Args:
        widths: of the input, of each hidden layer and of the output.
        last_norm: end in a BatchNorm without scale and bias.
    """
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        modules += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    modules.append(nn.Linear(widths[-2], widths[-1], bias=False))
    if last_norm:
        modules.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*modules)


def _freeze_patch_projection(backbone: Backbone) -> None:
    freeze = getattr(backbone, "freeze_patch_projection", None)
    if freeze is None:
        name = type(backbone).__name__
        raise UserError(f"objective.freeze_patch_projection=true: {name} has no patch projection, a ViT has; set false")
    freeze()


def _check(momentum: float, projection_layers: int) -> None:
    if not 0 <= momentum <= 1:
        raise UserError(f"objective.momentum={momentum}: must be from 0 to 1")
    if projection_layers < 1:
        raise UserError(f"objective.projection_layers={projection_layers}: a projector has at least one layer")


def _check_directions(symmetric: bool, two_queues: bool, direction_mean: bool) -> None:
    for name, given in (("two_queues", two_queues), ("direction_mean", direction_mean)):
        if given and not symmetric:
            raise UserError(f"objective.{name}=true: it is for both directions: give objective.symmetric=true too")

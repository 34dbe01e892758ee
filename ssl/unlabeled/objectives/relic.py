"""ReLIC: each view finds its image among a few, and all pairs of views must give equal similarities to them.

v1: Mitrovic et al. 2020, arXiv:2010.07922. v2: Tomasev et al. 2022, arXiv:2201.05119, Algorithm 1. Neither's
pretraining code was published (github.com/google-deepmind/relicv2 only evaluates): values that no public text gives are
arguments.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, Count, Share, Temperature, Weight
from unlabeled.core.seeding import derive_seed, to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema
from unlabeled.objectives.parts.arguments import check_count, check_range, check_shapes
from unlabeled.objectives.parts.crops import check_large_first
from unlabeled.objectives.parts.heads import byol_mlp
from unlabeled.objectives.parts.precision import full_precision

StopGradient = Literal["entropy", "first_argument"]

_NEGATIVES = 0x4E6E  # keeps the draw of negatives apart from those of the views, which mix (seed, step, view)


@full_precision
def relic_loss(
    online_a: Tensor,
    online_b: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    negatives: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
    stop_gradient: StopGradient = "entropy",
) -> Tensor:
    """Returns α · contrast of view a with view b + β · KL(p(a→b) ‖ p(b→a)), mean over local rows (arXiv:2201.05119).

    p(a→b) is the softmax of an online embedding of view a over target embeddings of view b: those of its own image and
    of its negatives, whose images are the same in p(b→a).

    Args:
        online_a, online_b: [B, D], online embeddings of two views, unnormalised, the same B on every process.
        target_a, target_b: [B, D], the target network's, unnormalised; get no gradient.
        negatives: int64 [B, n], rows of the joined batch of all processes, never the row itself.
        temperature: above 0.
        alpha, beta: weights of contrast and invariance.
        stop_gradient: see :func:`kl_divergence`.

    Returns:
        Scalar; α · ln(n+1) when all embeddings are equal.

    Raises:
        UserError: shapes that do not fit together, or a number out of its range.
    """
    online, targets = {"online_a": online_a, "online_b": online_b}, {"target_a": target_a, "target_b": target_b}
    rows = {name: (tensor, "BD") for name, tensor in {**online, **targets}.items()}
    check_shapes("relic_loss", {**rows, "negatives": (negatives, "BN")})
    check_range("relic_loss", temperature=temperature)
    check_range("relic_loss", at_least=True, alpha=alpha, beta=beta)
    there = contrastive_log_probabilities(online_a, gather_targets(target_b), negatives, temperature)
    back = contrastive_log_probabilities(online_b, gather_targets(target_a), negatives, temperature)
    return alpha * contrastive_loss(there) + beta * kl_divergence(there, back, stop_gradient)


@full_precision
def contrastive_log_probabilities(online: Tensor, targets: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Returns log p over an image and its negatives.

    Args:
        online: [B, D], unnormalised.
        targets: [N, D], of :func:`gather_targets`.
        negatives: int64 [B, n], rows of ``targets``.
        temperature: above 0.

    Returns:
        [B, 1 + n], its own image first.
    """
    fitting = {"online": (online, "BD"), "targets": (targets, "ND"), "negatives": (negatives, "BM")}
    check_shapes("contrastive_log_probabilities", fitting)
    check_range("contrastive_log_probabilities", temperature=temperature)
    if negatives.dtype != torch.int64:
        raise UserError(
            f"contrastive_log_probabilities: negatives are {negatives.dtype}, and must be int64 row numbers"
        )
    own = distributed.rank() * len(online) + torch.arange(len(online), device=online.device)
    cosines = F.normalize(online, dim=1) @ targets.T  # [B, N]
    return F.log_softmax(cosines.gather(1, torch.cat([own[:, None], negatives], 1)) / temperature, dim=1)


@full_precision
def gather_targets(target: Tensor) -> Tensor:
    """Returns unit rows [N, D] of all processes, without a gradient, from [B, D]."""
    return distributed.gather(F.normalize(target.detach(), dim=1))


def contrastive_loss(log_p: Tensor) -> Tensor:
    """Returns the negative log-likelihood of the own image, mean over the rows of [B, 1 + n]."""
    return -log_p[:, 0].mean()


def kl_divergence(log_p: Tensor, log_q: Tensor, stop_gradient: StopGradient) -> Tensor:
    """Returns KL(p ‖ q) of log rows [B, 1 + n], mean over the rows; ``stop_gradient`` does not change the value.

    Args:
        log_p, log_q: log-probabilities.
        stop_gradient: ``entropy`` stops the gradient only in Σ p ln p, and p still learns through Σ p ln q, as in
            SemPPL's formula; ``first_argument`` stops it for p everywhere.
    """
    check_shapes("kl_divergence", {"log_p": (log_p, "BN"), "log_q": (log_q, "BN")})
    _check_stop_gradient("kl_divergence: ", stop_gradient)
    held = log_p.detach()
    entropy = (held.exp() * held).sum(1)
    p = log_p.exp() if stop_gradient == "entropy" else held.exp()
    return (entropy - (p * log_q).sum(1)).mean()


def sample_negatives(images: int, count: int, generator: torch.Generator) -> Tensor:
    """Draws ``count`` other rows for each of ``images`` rows: every subset equally likely, no row twice.

    Floyd's algorithm for all rows at once (Bentley and Floyd 1987, doi:10.1145/30401.315746): it needs ``count`` short
    draws, and never a matrix of images × images.

    Returns:
        int64 [images, count], on the CPU.

    Raises:
        UserError: there are not so many other rows.
    """
    check_count("sample_negatives", images=images, count=count)
    if count >= images:
        raise UserError(f"sample_negatives: count={count}: of {images} rows {images - 1} are other ones")
    chosen = torch.arange(count).repeat(images, 1)  # all other rows, if there are no more than count
    for turn in range(count if count < images - 1 else 0):
        last = images - 1 - count + turn  # an index among the other rows, 0 … images − 2
        drawn = torch.randint(0, last + 1, (images, 1), generator=generator)
        taken = (chosen[:, :turn] == drawn).any(1, keepdim=True)
        chosen[:, turn : turn + 1] = torch.where(taken, last, drawn)
    return chosen + (chosen >= torch.arange(images)[:, None])  # skips the row itself


class ReLIC(Objective):
    """Online and target network: ReLICv2 with more than two large views or with small ones, else ReLIC.

    Views of the first view's size are large: both networks see all of them. The others are small: only the online
    network sees them. The target network is updated after each optimizer step, with the new weights.

    Args:
        backbone: the network to pretrain.
        hidden_dim: width inside projector and predictor.
        projection_dim: width of the embeddings, D.
        predictor: a second MLP on the online side, as BYOL.
        temperature: of the softmax.
        alpha, beta: weights of contrast and invariance.
        negatives: number n of other images, from all processes' batch, that each is compared with; None: all of them.
        stop_gradient: see :func:`kl_divergence`.
        include_same_view: also contrast a large view with the target network's embedding of the same view.
        small_invariance: small views too have an invariance term: KL(p(l→j) ‖ p(s→j)) without a gradient to p(l→j),
            where the large view l is the one after j.
        momentum: of the target network at the start; rises to 1 by half a cosine.

    Raises:
        UserError: an argument that cannot work.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden_dim: Channels,
        projection_dim: Channels,
        predictor: bool,
        temperature: Temperature,
        alpha: Weight,
        beta: Weight,
        negatives: Count | None,
        stop_gradient: StopGradient,
        include_same_view: bool,
        small_invariance: bool,
        momentum: Share,
    ) -> None:
        super().__init__()
        _check(stop_gradient, negatives, momentum)
        self.backbone = backbone
        self.projector: nn.Module = byol_mlp(backbone.num_features, hidden_dim, projection_dim)
        self.predictor: nn.Module = byol_mlp(projection_dim, hidden_dim, projection_dim) if predictor else nn.Identity()
        self.target_backbone = ema.frozen_copy(self.backbone)
        self.target_projector: nn.Module = ema.frozen_copy(self.projector)
        self.temperature, self.alpha, self.beta = temperature, alpha, beta
        self.negatives, self.stop_gradient, self.momentum = negatives, stop_gradient, momentum
        self.include_same_view, self.small_invariance = include_same_view, small_invariance

    def check(self, plan: Plan) -> None:
        """Requires at least two large views, and as many other images as negatives."""
        plan.needs_views(2)
        plan.needs_negatives()
        check_large_first(plan)
        if self.negatives is not None and self.negatives > plan.batch_size - 1:
            given = f"objective.negatives={self.negatives}"
            raise UserError(f"{given}: a batch_size of {plan.batch_size} has {plan.batch_size - 1} other images")

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"momentum": self._momentum_at(progress), "temperature": self.temperature}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs every view separately, as in BYOL's code: BatchNorm never mixes views."""
        large = [view for view in batch.views if view.shape == batch.views[0].shape]
        features = [self.backbone(view) for view in batch.views]
        online = [self.predictor(self.projector(each)) for each in features]
        targets = [gather_targets(self._target(view)) for view in large]
        negatives = to_device(self._negatives(len(online[0]), progress), online[0].device)
        log_p = [[contrastive_log_probabilities(o, t, negatives, self.temperature) for t in targets] for o in online]
        loss, metrics = self._all_pairs(log_p)
        return Output(loss, features[0].detach(), metrics, online[0], targets[0])

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.target_projector(self.target_backbone(images))
        return embeddings

    def _negatives(self, images: int, progress: Progress) -> Tensor:
        """Draws negatives for the global batch once a step, so that all pairs of views use the same images."""
        total = images * distributed.world_size()
        count = total - 1 if self.negatives is None else self.negatives
        generator = torch.Generator().manual_seed(derive_seed(progress.seed, progress.batch, _NEGATIVES))
        first = distributed.rank() * images
        return sample_negatives(total, count, generator)[first : first + images]

    def _all_pairs(self, log_p: Sequence[Sequence[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean contrast over pairs of an online and a target view, and the mean invariance.

        Algorithm 1 counts all pairs. The invariance is the mean over those that have one, or small views would make β
        smaller: a view has none with itself, and a small view has none unless ``small_invariance``.
        """
        pairs = list(self._pairs(len(log_p), len(log_p[0])))
        contrasts = torch.stack([contrastive_loss(log_p[i][j]) for i, j in pairs]).mean()
        found_divergences = [self._divergence(log_p, i, j) for i, j in pairs]
        divergences = torch.stack([each for each in found_divergences if each is not None]).mean()
        found = torch.stack([_own_first(log_p[i][j].detach()) for i, j in pairs]).mean()
        metrics = {"contrast": contrasts.detach(), "divergence": divergences.detach(), "instance_top1": found}
        return self.alpha * contrasts + self.beta * divergences, metrics

    def _pairs(self, views: int, large: int) -> Iterator[tuple[int, int]]:
        return ((i, j) for i in range(views) for j in range(large) if self.include_same_view or i != j)

    def _divergence(self, log_p: Sequence[Sequence[Tensor]], i: int, j: int) -> Tensor | None:
        large = len(log_p[0])
        if i < large and i != j:
            return kl_divergence(log_p[i][j], log_p[j][i], self.stop_gradient)
        if i >= large and self.small_invariance:
            return kl_divergence(log_p[(j + 1) % large][j], log_p[i][j], "first_argument")
        return None

    def after_step(self, progress: Progress) -> None:
        """Updates θ_target ← m·θ_target + (1 − m)·θ_online with the weights after the step."""
        momentum = self._momentum_at(progress)
        ema.update(self.target_backbone, self.backbone, momentum)
        ema.update(self.target_projector, self.projector, momentum)

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return (self.target_backbone, self.backbone), (self.target_projector, self.projector)

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the accuracy of finding an image: chance is one in n + 1; equal embeddings never find it."""
        return (
            MetricBound(
                "instances-not-found",
                "instance_top1",
                1 / self._candidates(plan),
                1.0,
                "images are told from their negatives no better than by chance",
                "a lower objective.temperature, weaker views, and a look at optimizer.lr and its warm-up",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns α · ln(n+1)."""
        return self.alpha * math.log(self._candidates(plan))

    def _candidates(self, plan: Plan) -> int:
        """Returns the number of candidates, n + 1: the image itself and its negatives."""
        return plan.batch_size if self.negatives is None else 1 + self.negatives


def _own_first(log_p: Tensor) -> Tensor:
    """Returns the share of rows [B, 1 + n] whose own image scores above all others; 0 if all embeddings are equal."""
    return (log_p[:, 0] > log_p[:, 1:].amax(1)).float().mean()


def _check(stop_gradient: str, negatives: int | None, momentum: float) -> None:
    _check_stop_gradient("objective.", stop_gradient)
    if negatives is not None and negatives < 1:
        raise UserError(f"objective.negatives={negatives}: must be at least 1, or null for all other images")
    if not 0 <= momentum <= 1:
        raise UserError(f"objective.momentum={momentum}: must be from 0 to 1")


def _check_stop_gradient(where: str, stop_gradient: str) -> None:
    if stop_gradient not in get_args(StopGradient):
        raise UserError(f"{where}stop_gradient={stop_gradient}: allowed are {' and '.join(get_args(StopGradient))}")

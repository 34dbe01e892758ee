"""PAWS: each view predicts the class probabilities of the other view, found by comparison with labelled images.

Assran et al. 2021, arXiv:2104.13963. Official code: github.com/facebookresearch/suncet (src/losses.py, paws_train.py).
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.ranges import Channels, PartialShare, SomeShare, Temperature
from unlabeled.data.support import ClassBalanced
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress, Support
from unlabeled.objectives.parts.arguments import check_count, check_range, check_shapes
from unlabeled.objectives.parts.heads import paws_predictor, swav_projector
from unlabeled.objectives.parts.precision import full_precision

SMALLEST_TARGET = 1e-4  # smaller entries of a target are set to 0, and the rest is not scaled up (losses.py)
LARGE = 2  # large views: the first ones, which are targets for each other


@full_precision
def soft_nearest_neighbours(queries: Tensor, supports: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns class probabilities: support labels, weighted by a softmax of cosines (arXiv:2104.13963, eq. 1).

    Args:
        queries: [B, D], unnormalised.
        supports: [S, D], unnormalised.
        labels: [S, C], rows sum to 1.
        temperature: above 0.

    Returns:
        [B, C], rows sum to 1.

    Raises:
        UserError: shapes that do not fit together, or a temperature that is not above 0.
    """
    caller = "soft_nearest_neighbours"
    check_shapes(caller, {"queries": (queries, "BD"), "supports": (supports, "SD"), "labels": (labels, "SC")})
    check_range(caller, temperature=temperature)
    logits = (F.normalize(queries, dim=1) / temperature) @ F.normalize(supports, dim=1).T
    return F.softmax(logits, dim=1) @ labels.to(logits.dtype)


def sharpen_probabilities(probabilities: Tensor, sharpen: float) -> Tensor:
    """Returns ρ(p) = p^(1/T) / Σ p^(1/T) (eq. 2) of each row [B, C], with T = ``sharpen`` in (0, 1]."""
    check_range("sharpen_probabilities", most=1, sharpen=sharpen)
    largest = probabilities.detach().amax(1, keepdim=True)  # does not change ρ; without it 1000 classes underflow
    powers = (probabilities / largest) ** (1 / sharpen)
    return powers / powers.sum(1, keepdim=True)


@full_precision
def paws_loss(
    anchors: Tensor,
    supports: Tensor,
    targets: Tensor,
    target_supports: Tensor,
    labels: Tensor,
    small_views: int,
    temperature: float,
    sharpen: float,
) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of views with their targets, and me-max (arXiv:2104.13963, eq. 3 and 4).

    The target of a small view is the mean of the two sharpened targets. Supports and labels are gathered from all
    processes. The cross-entropy is the mean over the local anchors; me-max is that of the mean over all processes'
    anchors.

    Args:
        anchors: [(2+M)·B, D], view by view, the two large views first; unnormalised, like all embeddings here.
        supports: [S, D], of the same head as ``anchors``; S is the same on every process.
        targets: [2·B, D], swapped: the first B rows are from the second view and are the targets of the first. No
            gradient.
        target_supports: [S, D], of the same head as ``targets``. No gradient.
        labels: [S, C], rows sum to 1.
        small_views: M.
        temperature: of the soft nearest neighbours.
        sharpen: T, in (0, 1].

    Returns:
        Cross-entropy and me-max, scalars: the loss is their sum. Where all embeddings are equal and all classes have
        equally many supports they are ln C and −ln C.

    Raises:
        UserError: shapes that do not fit together, or a number out of its range.
    """
    _check_rows(anchors, supports, targets, target_supports, labels, small_views)
    check_range("paws_loss", temperature=temperature)
    check_range("paws_loss", most=1, sharpen=sharpen)
    labels = distributed.gather(labels)
    wanted = target_classes(targets, target_supports, labels, small_views, temperature, sharpen)
    return prediction_losses(anchors, supports, wanted, labels, temperature, sharpen)


@torch.no_grad()
@full_precision
def target_classes(
    targets: Tensor, target_supports: Tensor, labels: Tensor, small_views: int, temperature: float, sharpen: float
) -> Tensor:
    """Returns the targets of the anchors, [(2+M)·B, C]: half of :func:`paws_loss`, with all processes' labels."""
    supports = distributed.gather(_unit_rows(target_supports))
    wanted = sharpen_probabilities(soft_nearest_neighbours(targets, supports, labels, temperature), sharpen)
    if len(wanted) % LARGE:
        raise UserError(f"target_classes: {len(wanted)} targets; needed are those of {LARGE} large views, equally many")
    first, second = wanted.chunk(LARGE)
    wanted = torch.cat([wanted, *[(first + second) / 2] * small_views])
    return torch.where(wanted < SMALLEST_TARGET, 0.0, wanted)  # NaN stays, and with it the loss says so


@full_precision
def prediction_losses(
    anchors: Tensor, supports: Tensor, wanted: Tensor, labels: Tensor, temperature: float, sharpen: float
) -> tuple[Tensor, Tensor]:
    """Returns cross-entropy and me-max, the other half of :func:`paws_loss`, with the labels of all processes."""
    fitting = {"anchors": (anchors, "AD"), "supports": (supports, "SD")}
    check_shapes("prediction_losses", {**fitting, "wanted": (wanted, "AC"), "labels": (labels, "LC")})
    supports = distributed.gather(_unit_rows(supports))
    predictions = soft_nearest_neighbours(anchors, supports, labels, temperature)
    mean = distributed.mean(sharpen_probabilities(predictions, sharpen).mean(0))
    return -_x_log_y(wanted, predictions).sum(1).mean(), _x_log_y(mean, mean).sum()


def _x_log_y(x: Tensor, y: Tensor) -> Tensor:
    """Returns x·ln y with a finite value and gradient at y = 0, which torch.xlogy and entr do not have."""
    return x * y.clamp(min=torch.finfo(y.dtype).tiny).log()


class PAWS(Objective):
    """Backbone, projector and optional prediction head, trained with :func:`paws_loss`.

    The first two views are the large ones, all others are small.

    Args:
        backbone: the network to pretrain.
        projection_hidden: width of each hidden layer of the projector.
        projection_dim: width of the embeddings.
        prediction_head: whether anchors and their supports pass through a further head; targets never do.
        label_smoothing: share of a support's label that is spread over all classes of the step.
        temperature: of the soft nearest neighbours.
        sharpen: T, in (0, 1]; small makes targets hard.
        support: the labelled images beside each batch.

    Raises:
        UserError: values that cannot work.
    """

    uses_labels = True  # those of the support

    def __init__(
        self,
        backbone: Backbone,
        projection_hidden: Sequence[Channels],
        projection_dim: Channels,
        prediction_head: bool,
        label_smoothing: PartialShare,
        temperature: Temperature,
        sharpen: SomeShare,
        support: ClassBalanced,
    ) -> None:
        super().__init__()
        _check(label_smoothing, temperature, sharpen, support.views)
        self.backbone = backbone
        self.projector: nn.Module = swav_projector(backbone.num_features, projection_hidden, projection_dim, True)
        self.predictor: nn.Module = paws_predictor(projection_dim) if prediction_head else nn.Identity()
        self.label_smoothing, self.temperature, self.sharpen = label_smoothing, temperature, sharpen
        self.support, self.classes = support, support.classes_per_batch

    def check(self, plan: Plan) -> None:
        """Requires at least two large views of one size: they share a forward with the supports."""
        plan.needs_views(LARGE)
        sizes = list(plan.views[:LARGE])
        if len(set(sizes)) > 1:
            raise UserError(f"views: the first {LARGE} of objective=paws are the large ones, of one size; here {sizes}")

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"temperature": self.temperature, "sharpen": self.sharpen}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Runs supports and large views in one forward, so that BatchNorm sees them together; then each small size."""
        large, small = batch.views[:LARGE], batch.views[LARGE:]
        support = _support_of(batch)
        rows, images = sum(len(view) for view in support.views), len(batch.images)
        features = self.backbone(torch.cat([*support.views, *large]))
        projected = self.projector(features)
        predicted = self.predictor(projected)
        anchors = torch.cat([predicted[rows:], *self._small(small)])
        first, second = projected[rows:].chunk(LARGE)
        swapped, labels = torch.cat([second, first]), distributed.gather(self._labels(support, projected.dtype))
        wanted = target_classes(swapped, projected[:rows], labels, len(small), self.temperature, self.sharpen)
        parts = prediction_losses(anchors, predicted[:rows], wanted, labels, self.temperature, self.sharpen)
        seen = features[rows : rows + images].detach()
        return Output(parts[0] + parts[1], seen, _metrics(*parts, wanted), anchors, wanted)

    def _small(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Returns anchors of small views; each size has its own forward and BatchNorm statistics, heads included."""
        groups = itertools.groupby(views, key=lambda view: view.shape[-2:])
        return [self.predictor(self.projector(self.backbone(torch.cat(list(group))))) for _, group in groups]

    def _labels(self, support: Support, dtype: torch.dtype) -> Tensor:
        """Returns smoothed labels [views · S, K]; which class is in a slot does not matter (suncet issue 20)."""
        classes = torch.arange(self.classes, device=support.slots.device)
        exact = (support.slots[:, None] == classes).to(torch.promote_types(dtype, torch.float32))
        labels = exact * (1 - self.label_smoothing) + self.label_smoothing / self.classes
        return labels.repeat(len(support.views), 1)

    def head(self) -> nn.Module:
        """Returns projector and prediction head: the official evaluation compares the output of both."""
        return nn.Sequential(self.projector, self.predictor)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds the spread of targets: sharpened ones name few classes; one that names all equally teaches nothing."""
        return (
            MetricBound(
                "targets-not-sharp",
                "classes_per_target",
                0.0,
                0.9 * self.classes,
                "targets are spread over all classes: they are not sharpened, or the views of an image do not agree",
                "objective.sharpen=0.25 as published, or weaker views",
                lasting=True,
            ),
            MetricBound(
                "one-class-for-all",
                "effective_classes",
                min(1.5, self.classes),
                self.classes + 0.5,
                "every image gets the same class: mean entropy maximisation is missing",
                "add me_max to the loss",
                lasting=True,
            ),
        )

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns 0: with equal embeddings cross-entropy is ln K and me-max −ln K. One class for all gives nearly 0."""
        return 0.0


def _support_of(batch: Batch) -> Support:
    if batch.support is None or not batch.support.views:
        raise UserError("objective=paws needs labelled images beside each batch: Batch.support, with views")
    return batch.support


@torch.no_grad()
def _metrics(cross_entropy: Tensor, me_max: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Returns the parts of the loss, and the spread (1 to K classes) of the mean prediction and of each target."""
    return {
        "cross_entropy": cross_entropy.detach(),
        "me_max": me_max.detach(),
        "effective_classes": (-me_max.detach()).exp(),
        "classes_per_target": distributed.mean(-_x_log_y(wanted, wanted).sum(1).mean()).exp(),
    }


@full_precision
def _unit_rows(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def _check_rows(
    anchors: Tensor, supports: Tensor, targets: Tensor, target_supports: Tensor, labels: Tensor, small_views: int
) -> None:
    """Checks the numbers of rows; ``[2·B, D]`` of the targets gives the number of images."""
    check_count("paws_loss", least=0, small_views=small_views)
    heads = {"anchors": (anchors, "AD"), "supports": (supports, "SD"), "labels": (labels, "SC")}
    check_shapes("paws_loss", {**heads, "targets": (targets, "TE"), "target_supports": (target_supports, "SE")})
    if len(targets) % LARGE or LARGE * len(anchors) != (LARGE + small_views) * len(targets):
        raise UserError(
            f"paws_loss: {len(anchors)} anchors, {len(targets)} targets and small_views={small_views} do not fit: of B"
            f" images there are {LARGE}·B targets and ({LARGE} + small_views)·B anchors"
        )


def _check(label_smoothing: float, temperature: float, sharpen: float, support_views: int) -> None:
    if not 0 <= label_smoothing < 1:
        raise UserError(f"objective.label_smoothing={label_smoothing}: must be at least 0 and below 1")
    if temperature <= 0:
        raise UserError(f"objective.temperature={temperature}: must be above 0")
    if not 0 < sharpen <= 1:
        raise UserError(f"objective.sharpen={sharpen}: must be above 0 and at most 1")
    if support_views > LARGE:
        raise UserError(f"objective.support.views={support_views}: only the {LARGE} large views, so at most {LARGE}")

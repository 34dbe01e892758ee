"""Defines the contract between data, views, backbone, objective and the training loop, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from unlabeled.errors import UserError


class Support(NamedTuple):
    """Holds the labelled images of a step. S is their number on this process; all classes have equally many."""

    images: Tensor  # uint8 [S, 3, H, W], as decoded, each in the upper left corner
    ids: Tensor  # int64 [S], position of each image in its source
    slots: Tensor  # int64 [S], number of each image's class among the classes of this step, from 0
    views: tuple[Tensor, ...] = ()  # float [S, 3, h, w] each, made on the device, as the first views of a batch
    sizes: Tensor | None = None  # int64 [S, 2], height and width of each image; None: every image fills H × W
    labels: Tensor | None = None  # int64 [S], number of each image's class among those of the data set


class Batch(NamedTuple):
    """Holds the images of one step. B is the number on this process; rows are in the order of the global batch."""

    images: Tensor  # uint8 [B, 3, H, W], as decoded, each in the upper left corner
    ids: Tensor  # int64 [B], position of each image in its source
    labels: Tensor  # int64 [B], -1 where there is none; for probes, and a loss only if Objective.uses_labels
    views: tuple[Tensor, ...] = ()  # float [B, 3, h, w] each, made on the device
    support: Support | None = None  # labelled images, only for an objective that needs them (NeedsSupport)
    sizes: Tensor | None = None  # int64 [B, 2], height and width of each image; None: every image fills H × W
    companions: "Batch | None" = None  # row i belongs to row i; only for an objective that needs them (NeedsCompanions)


class Progress(NamedTuple):
    """Says how far the run is. Every schedule and random draw of a method must depend on these values only."""

    step: int  # optimizer steps taken before this one
    total_steps: int
    steps_per_epoch: int
    seed: int
    part: int = 0  # batches of this step before this one: their gradients are averaged
    parts: int = 1  # batches in a step

    @property
    def batch(self) -> int:
        """Returns the number of batches before this one. Random draws depend on it, so no two batches share a draw."""
        return self.step * self.parts + self.part

    @property
    def fraction(self) -> float:
        """Returns the share of the run that is done, in [0, 1)."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> float:
        """Returns the number of epochs that are done, with its fractional part."""
        return self.step / self.steps_per_epoch


class Plan(NamedTuple):
    """Describes the data that a run will give its objective; known before any image is read."""

    batch_size: int  # over all processes
    processes: int
    images: int  # in the training split
    views: Sequence[int]  # height and width of each view of an image, pixels
    classes: int | None = None  # of the training split's labels; None: it has no labels

    def needs_labels(self) -> int:
        """Returns the number of classes; raises UserError where the training images have no labels."""
        if self.classes is None:
            raise UserError("objective: it trains with labels, and the training images have none: give other data=…")
        return self.classes

    def needs_views(self, at_least: int, at_most: int | None = None) -> None:
        """Raises UserError unless the number of views is in the given range."""
        if len(self.views) < at_least or (at_most is not None and len(self.views) > at_most):
            wanted = f"exactly {at_least}" if at_least == at_most else f"at least {at_least}"
            raise UserError(
                f"views: these make {len(self.views)} of an image, the objective takes {wanted}: give views=…"
            )

    def needs_negatives(self) -> None:
        """Raises UserError for a batch of one image, in which a contrastive loss has no negatives."""
        if self.batch_size < 2:
            raise UserError(
                f"batch_size={self.batch_size}: the other images of a batch are the negatives of this objective, and "
                "there are none: give 2 at least"
            )


@dataclass(frozen=True)
class Check:
    """The result of one check for a setting that can work but is probably a mistake."""

    name: str
    passed: bool
    found: str  # a sentence with the keys and their values
    remedy: str  # the setting to use instead


@dataclass
class Output:
    """Holds what an objective returns for one batch."""

    loss: Tensor  # float32 scalar
    features: Tensor  # [B, backbone.num_features], detached, for online probes
    metrics: dict[str, Tensor] = field(default_factory=dict)  # detached scalars, logged as train/<name>
    # For the health monitor only, [n, D]: the vectors that the loss normalises, with their graph; and the teacher's
    # vectors of other views, which must have no graph.
    embeddings: Tensor | None = None
    targets: Tensor | None = None


class MetricBound(NamedTuple):
    """Gives the healthy range of one metric. The health monitor warns while the metric is outside of it."""

    name: str  # of the failure, e.g. codes-not-balanced
    metric: str  # in Output.metrics
    at_least: float
    at_most: float
    meaning: str  # what such a value usually means, a sentence
    remedy: str  # what to try
    lasting: bool = False  # True: a healthy run may be out of bounds while its loss may still be at collapse


class Backbone(nn.Module):
    """A network that maps images [B, channels, h, w] to features [B, num_features]. It is what a run produces."""

    num_features: int
    channels: int = 3  # of the images
    image_size: int | None = None  # height and width of the images that it is built for, pixels; None: any
    size_multiple: int | None = None  # its multiples work too, by interpolation; None: only ``image_size``
    kinds: tuple[str, ...] = ("last",)  # of features that it can return

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        """Returns the features that probes use, in one forward pass.

        Args:
            images: [B, 3, h, w].
            kinds: among :attr:`kinds`. ``last`` is the output of forward, [B, num_features]; ``tokens`` [B, n, D] are
                the tokens before pooling, without a class token; ``map`` [B, D, h', w'] are dense features: those
                tokens in their places; ``last4`` [B, D'] is one vector for each of the last
                four blocks or stages, concatenated; ``cls`` and ``patches`` [B, D] are the class token and the mean of
                the others.

        Raises:
            UserError: a kind that this architecture does not have.
        """
        self.check_kinds(kinds)
        return {"last": self(images)}

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Returns what the stages of a convolutional network make of images, [B, C, h, w] each, the finest first.

        Raises:
            UserError: the architecture has no stages of falling resolution.
        """
        raise UserError(f"backbone: {type(self).__name__} has no stages with maps of falling resolution")

    def check_kinds(self, kinds: Sequence[str]) -> None:
        """Raises UserError for a kind of features that this architecture does not have."""
        for kind in kinds:
            if kind not in self.kinds:
                raise UserError(
                    f"features={kind}: {type(self).__name__} has no such features; allowed: {', '.join(self.kinds)}"
                )

    def check_size(self, size: int) -> None:
        """Raises UserError if the backbone cannot take images of ``size`` × ``size`` pixels, and says which it can."""
        if self.image_size in (None, size):
            return
        name, built = type(self).__name__, self.image_size
        if self.size_multiple is None:
            raise UserError(
                f"views.size={size}: {name} takes images of {built} pixels alone: give backbone.image_size={size}, or"
                f" views of {built} pixels"
            )
        if size % self.size_multiple or size < self.size_multiple:
            fitting = max(1, round(size / self.size_multiple)) * self.size_multiple
            raise UserError(
                f"views.size={size}: {name} cuts images into patches of {self.size_multiple} pixels: give {fitting}, or"
                f" another multiple of it"
            )

    def shards(self) -> list[nn.Module]:
        """Returns the blocks, in the order of their calls.

        FSDP gathers, and checkpointing recomputes, one at a time.
        """
        return []


class Objective(nn.Module):
    """Turns the views of a batch into a loss. Owns the backbone and every state of the method as persistent buffers.

    Features that only some methods have are not part of this class. Each is a protocol below: a method has it by
    defining its members, and callers test for it with ``isinstance``.
    """

    backbone: Backbone
    uses_labels: bool = False  # True: the method trains with labels, which the run says in its log, report and card
    shapes_vary: bool = False  # True: lengths of sequences differ between steps, which CUDA graphs cannot repeat

    def product(self) -> Backbone:
        """Returns the network that is evaluated, exported and published: the backbone, or a teacher of the same kind.

        A checkpoint holds both and names this one.
        """
        return self.backbone

    def check(self, plan: Plan) -> None:
        """Raises UserError, in one line, for a run that cannot work. It is called before any image is read."""

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Returns the loss of one batch.

        Must not change state that a later step reads. Exceptions, in training: its own buffers, and parameters that no
        optimizer trains. If the loss is not finite, these are restored and the step is skipped.
        """
        raise NotImplementedError

    def after_step(self, progress: Progress) -> None:
        """Updates the method after an optimizer step, e.g. a moving average. ``progress`` is that of the step.

        It may write to its buffers and to what no optimizer trains; to trained parameters only with ``WritesTrained``.
        """

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns the loss of a network whose embeddings are all equal, or None if the method has no such value."""
        return None


@runtime_checkable
class AfterBackward(Protocol):
    """A method that changes gradients, e.g. to keep prototypes fixed (SwAV)."""

    def after_backward(self, progress: Progress) -> None:
        """Changes the gradients. It is called once per optimizer step, before they are clipped and used."""
        ...


@runtime_checkable
class WritesTrained(Protocol):
    """A method whose ``after_step`` writes to parameters that the optimizer trains (SwAV)."""

    def written_after_step(self) -> Sequence[Tensor]:
        """Returns these parameters. On a GPU a step that must not count is undone after it, and these with it."""
        ...


@runtime_checkable
class HasRateFactors(Protocol):
    """A method some of whose parameters have learning rates of their own (Barlow Twins, SimSiam)."""

    def lr_factors(self) -> Mapping[str, float | Literal["constant"]]:
        """Returns factors on the learning rate by the name of the parameter; ``constant`` keeps it at the peak."""
        ...


@runtime_checkable
class HasSchedules(Protocol):
    """A method that has scheduled values, which the plan and the monitor show."""

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        """Returns the values that the method uses at a step, by name, computed by the code that the step itself uses.

        Standard names, for methods that have such a value: ``momentum`` of a teacher, ``temperature``, ``queue_fill``:
        the share of a queue that holds embeddings of images when the step begins, in [0, 1].
        """
        ...


@runtime_checkable
class HasMethodWarnings(Protocol):
    """A method that can detect settings that work but are probably a mistake (MoCo, SwAV)."""

    def plan_warnings(self, plan: Plan) -> list[Check]:
        """Returns the checks for the plan, passed or not. It is called after :meth:`Objective.check`."""
        ...


@runtime_checkable
class HasTeacher(Protocol):
    """A method with teachers: copies of networks that follow the trained ones slowly (MoCo, ReLIC)."""

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """Returns each teacher with its student, at least one pair, the backbone's first; for the monitor."""
        ...


@runtime_checkable
class HasMetricBounds(Protocol):
    """A method that can fail in ways that its own metrics show."""

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Returns the bounds by which the health monitor recognises such failures."""
        ...


@runtime_checkable
class HasHead(Protocol):
    """A method whose embeddings deserve a probe of their own, beside the backbone's features (PAWS)."""

    def head(self) -> nn.Module:
        """Returns the module that turns features [B, num_features] into embeddings [B, D]."""
        ...


@runtime_checkable
class HasClassifier(Protocol):
    """A method that trains a classifier of its own (FixMatch, the supervised row)."""

    def own_classifier(self) -> nn.Module:
        """Returns the linear layer that turns features of :meth:`Objective.product` into logits of the classes."""
        ...


@runtime_checkable
class HasClusters(Protocol):
    """A method that says in which cluster an image is (SCAN, self-labelling)."""

    def clusters(self) -> nn.Module:
        """Returns the module that turns features [B, num_features] into log probabilities of clusters [B, C]."""
        ...


@runtime_checkable
class ContinuesAnother(Protocol):
    """A method that can start from the whole state of another one, heads too (self-labelling from SCAN)."""

    def from_another(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the method's own state, made of what a run's objective had; its own is returned as it is."""
        ...


@runtime_checkable
class HasVisualization(Protocol):
    """A method that can produce pictures from images, e.g. reconstructions (MAE)."""

    def visualize(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Returns pictures that the method makes of some images.

        Args:
            batch: has one view, the one of evaluation.
            seed: of every random draw.

        Returns:
            Pictures by name, in the order of columns, each [B, 3, h, w] with values like those of views. It is called
                without gradients, in eval mode, and on one process only: it must not use collectives.
            eval mode, and by one process alone: nothing in here may wait for another.
        """
        ...


@runtime_checkable
class HasPrototypes(Protocol):
    """A method that compares images with learned prototypes (SwAV)."""

    def prototype_scores(self, features: Tensor) -> Tensor:
        """Returns cosines [B, K] of features [B, num_features] with the prototypes; for pictures."""
        ...

"""Protocols of probes on features and on images, their scores, and metrics that complement top-1."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from unlabeled.evaluation.features import Features
from unlabeled.objective import Backbone, Batch
from unlabeled.views.pipeline import Views

MOST_IMBALANCE = 2  # ratio of largest to smallest class above which the mean over classes is reported too
MEAN_PER_CLASS = "mean_per_class_top1"
TOP5 = "top5"
TOP5_CLASSES = 20  # with fewer, a guess is right for more than a quarter of the images
CLASSES_SHOWN = 5  # most classes without images that are named


@dataclass(frozen=True)
class Head:
    """A classifier as a probe has fitted it: all that is needed to predict again with the same network."""

    kind: Literal["linear", "knn", "network"]  # how ``tensors`` predict, see unlabeled.evaluation.heads.kept
    features: str  # kind of features that it takes (``Backbone.kinds``)
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)  # plain JSON
    held: tuple[Tensor, Tensor] | None = None  # log probabilities [M, C] and labels [M] of images it was fitted without


@dataclass
class Score:
    """One number of one probe, with the settings, choices and notes that explain it."""

    protocol: str  # e.g. "knn/cosine-exp/k=200/T=0.1"; numbers of different protocols are not comparable
    top1: float  # per cent of test images; the mean over ``draws`` where there are some
    chosen: dict[str, Any] = field(default_factory=dict)  # hyper-parameters, and the data for their choice; plain JSON
    notes: list[str] = field(default_factory=list)  # warnings for the reader, in sentences
    predictions: Tensor | None = None  # int64 [N], class of each test image; of the first draw where there are some
    log_probabilities: Tensor | None = None  # float32 [N, C], where the probe has any
    metrics: dict[str, float] = field(default_factory=dict)  # further numbers: nmi, ari, ece, nll, …
    draws: list[float] = field(default_factory=list)  # top-1 of each random draw (of labels, of seeds), if several
    n_train: int | None = None  # labelled images that were used; None: all of train
    uncertainty: dict[str, Tensor] = field(default_factory=dict)  # float32 [N] of each score, larger = less sure
    head: Head | None = None  # what predicts, where the probe can give it
    labels: Tensor | None = None  # int64 [N] of the predictions, where images that are not decoded are left out late


class Probe(Protocol):
    """Fits on train features, predicts test features. Labels are all in [0, num_classes); deterministic.

    It looks at the kinds of features in its ``kinds``, at ``last`` alone where it has no such attribute.
    """

    @property
    def needs(self) -> int:
        """Returns the fewest labelled training images that the probe can be fitted on."""
        ...

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]: ...


def kinds_of(probe: object) -> tuple[str, ...]:
    """Returns the kinds of features that a probe uses."""
    return tuple(getattr(probe, "kinds", ("last",)))


def with_kind(protocol: str, kind: str) -> str:
    """Adds the kind of features to a protocol's name, unless it is ``last``."""
    return protocol if kind == "last" else f"{protocol}/features={kind}"


@dataclass
class Task:
    """Inputs of a probe that trains on images: recipes with augmentation, attentive probes, fine-tuning."""

    network: Backbone  # a copy, so that it may be trained; in eval mode, on ``device``
    train_labels: Tensor  # int64 [N], all in [0, num_classes); positions below count in here
    test_labels: Tensor  # int64 [M]
    batches: Callable[[str, Tensor, int], Iterable[Batch]]  # ("train" or "test", positions [n], batch size) → batches
    views: Views  # the run's size, mean and std; evaluation uses ``views.evaluation_view``
    num_classes: int
    device: torch.device
    precision: str  # 32-true, bf16-mixed or 16-mixed, of the forward passes
    train_names: Callable[[int], str]  # of the image at a position of train, for lists of labels
    train_ids: Tensor | None = None  # int64 [N], its number in the source, where that is not the position


@runtime_checkable
class ImageProbe(Protocol):
    """Trains on images and predicts the test images, once. Deterministic, and leaves global random states alone.

    Its features come from ``task.network`` in eval mode unless it trains the network itself.
    """

    baselines: bool  # True: also run on the random network, at the same cost

    @property
    def needs(self) -> int: ...

    def train_predict(self, task: Task) -> list[Score]: ...


def imbalanced(labels: Tensor) -> bool:
    """Checks whether the largest class of int64 [N] has more than ``MOST_IMBALANCE`` times the smallest's images."""
    counts = labels.bincount()
    present = counts[counts > 0]
    return bool(present.max() > MOST_IMBALANCE * present.min())


def mean_per_class(predictions: Tensor, labels: Tensor) -> float:
    """Returns the mean of the classes' top-1 in per cent, over classes in ``labels`` int64 [N]: each counts alike."""
    right = (predictions == labels).double()
    images = labels.bincount()
    hits = torch.zeros(len(images), dtype=torch.float64, device=labels.device).scatter_add_(0, labels, right)
    present = images > 0
    return 100 * float((hits[present] / images[present]).mean())


def top5(log_probabilities: Tensor, labels: Tensor) -> float:
    """Returns the share in per cent of rows of float [N, C] whose label int64 [N] is among the five likeliest classes.

    Of equal classes the first are likelier, as ``argmax`` has it; a class of probability 0 is never among them.
    """
    own = log_probabilities.gather(1, labels[:, None])
    before = torch.arange(log_probabilities.shape[1], device=labels.device) < labels[:, None]
    rank = ((log_probabilities > own) | ((log_probabilities == own) & before)).sum(dim=1)
    return 100 * float(((rank < 5) & (own.flatten() > -torch.inf)).double().mean())


def add_metrics(score: Score, labels: Tensor) -> None:
    """Adds the mean over classes where these are imbalanced, and top-5 where there are at least ``TOP5_CLASSES``.

    Only to a score with one prediction (for top-5: one distribution) for each of the test images' labels int64 [N].
    """
    if score.predictions is not None and imbalanced(labels):
        score.metrics.setdefault(MEAN_PER_CLASS, mean_per_class(score.predictions.to(labels.device), labels))
    found = score.log_probabilities
    if found is not None and found.shape[1] >= TOP5_CLASSES:
        score.metrics.setdefault(TOP5, top5(found.to(labels.device), labels))


def notes_on_labels(labels: Tensor, classes: int | list[str], where: str) -> list[str]:
    """Returns sentences on labels int64 [N], -1 where there is none: a single class, and classes without images.

    Args:
        labels: of the images.
        classes: their names, or how many there are.
        where: which images they are, a word.
    """
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    known = labels[labels >= 0]
    if not len(known):
        return []
    counts = known.bincount(minlength=len(names))
    if int((counts > 0).sum()) == 1:
        only = names[int(counts.argmax())]
        return [f"All {len(known):,} labelled {where} images are of one class, {only}: there is nothing to tell apart."]
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    shown = ", ".join(empty[:CLASSES_SHOWN]) + (", …" if len(empty) > CLASSES_SHOWN else "")
    return [f"{len(empty)} of {len(names)} classes have no {where} image: {shown}."] if empty else []

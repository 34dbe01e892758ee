"""Analyses a network's features without labels: rank, spread, invariance, layers, attention."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.core.seeding import derive_seed
from unlabeled.data.module import DataModule
from unlabeled.data.padding import batch_to_device
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, apply_head, concatenate, extract, full_float32
from unlabeled.evaluation.reporting.attention import attention_pictures, find_transformer
from unlabeled.objective import Backbone, Batch
from unlabeled.representation.cka import CKA
from unlabeled.representation.distance import attention_distance, uniform_attention_distance
from unlabeled.representation.invariance import augment_each, invariance
from unlabeled.representation.layers import Layers
from unlabeled.representation.measures import SHORTEST_WINDOW, measure_space, measure_warnings
from unlabeled.representation.spectrum import eigenspectrum
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import Views

ATTENTION_IMAGES = 64  # over which distances are averaged
ROLLOUTS = 6  # number of pictures

Log = Callable[[str], None]


@dataclass
class AnalysisSubject:
    """A loaded network, and the images that it is analysed on."""

    backbone: Backbone
    projector: nn.Module | None
    views: Views
    data: DataModule
    source: Source  # the split
    device: torch.device


@dataclass(frozen=True)
class Settings:
    """The extent of an analysis; see ``conf/representation.yaml``."""

    images: int
    lidar_images: int
    lidar_views: int
    alpha_window: Sequence[int]  # first and last rank
    batch_size: int
    seed: int


@dataclass
class Analysis:
    """The results. ``spaces`` are the backbone's features and, if there is one, the projector's embeddings."""

    spaces: dict[str, dict[str, Any]]  # by name: plain values, each with its N and D
    spectra: dict[str, Tensor]  # eigenvalues of the covariance, largest first
    layers: list[str]
    cka: Tensor | None  # [layers, layers]
    cka_images: int
    distances: Tensor | None  # pixels [blocks, heads]
    even_distance: float | None  # pixels
    rollouts: dict[str, Tensor]  # columns of pictures
    notes: list[str] = field(default_factory=list)  # warnings for the reader


def analyse(subject: AnalysisSubject, settings: Settings, log: Log) -> Analysis:
    """Analyses a network in three passes: many images, several views of some, single augmentations of some.

    The network is not changed; it runs in eval mode, in float32, without gradients.

    Raises:
        UserError: too few images or views for one of the measures.
    """
    check_settings(subject, settings)
    notes: list[str] = []
    with full_float32(subject.device):
        plain, layers, cka = _evaluation_features(subject, settings, notes)
        log(f"{len(plain.x):,} images through the network")
        views = _in_views(subject, settings)
        log(f"{settings.lidar_views} views of each of {len(views):,} images")
        pairs = _under_augmentations(subject, settings)
        log(f"{', '.join(pairs)} of each of them")
        heads: dict[str, nn.Module] = {"backbone": nn.Identity()}
        heads |= {} if subject.projector is None else {"projector": subject.projector}
        spaces, spectra = {}, {}
        for name, head in heads.items():
            project = partial(_apply_head, head, subject.device)
            features = project(plain.x)
            spaces[name] = measure_space(features, project(views), settings.alpha_window)
            spaces[name]["invariance"] = {key: invariance(project(a), project(b)) for key, (a, b) in pairs.items()}
            spectra[name] = eigenspectrum(features).cpu()
            notes += measure_warnings(name, spaces[name], settings.alpha_window, len(subject.source))
        distances, even, rollouts = _attention(subject, settings)
    matrix = None if cka is None else cka.matrix()
    counted = 0 if cka is None else cka.images
    return Analysis(spaces, spectra, layers, matrix, counted, distances, even, rollouts, notes)


def check_settings(subject: AnalysisSubject, settings: Settings) -> None:
    """Raises UserError for what cannot be measured."""
    for key, least in (("images", 4), ("lidar_images", 2), ("lidar_views", 2), ("batch_size", 4)):
        if (given := getattr(settings, key)) < least:
            raise UserError(f"{key}={given}: must be at least {least}")
    if len(subject.source) < 4:
        raise UserError(f"data: {len(subject.source)} images in this split; at least 4 are needed")
    window = settings.alpha_window
    if len(window) != 2 or not 1 <= window[0] <= window[1] - SHORTEST_WINDOW + 1:
        given = ",".join(map(str, window))
        raise UserError(f"alpha_window=[{given}]: give two ranks, from 1 on and with {SHORTEST_WINDOW} or more between")
    check_size(subject.backbone, subject.views)


def check_size(backbone: Backbone, views: Views) -> None:
    """Raises UserError if evaluation makes images of a size that the backbone does not take."""
    if backbone.image_size not in (None, views.size):
        raise UserError(
            f"views.size={views.size}: this backbone takes images of {backbone.image_size} pixels alone; give views=…"
        )


def choose_images(source: Source, count: int, seed: int) -> Tensor:
    """Returns random positions in a split, determined by the seed; in random order, so that batches are alike."""
    return torch.randperm(len(source), generator=torch.Generator().manual_seed(derive_seed(seed, 0)))[:count]


def _batches(subject: AnalysisSubject, count: int, settings: Settings) -> Iterable[Batch]:
    positions = choose_images(subject.source, count, settings.seed)
    return subject.data.batches(subject.source, positions, min(settings.batch_size, len(positions)))


def _features(subject: AnalysisSubject, batch: Batch, transform: Callable[[Tensor, Tensor | None], Tensor]) -> Features:
    return extract(subject.backbone, [batch], transform, subject.device)


def _evaluation_features(
    subject: AnalysisSubject, settings: Settings, notes: list[str]
) -> tuple[Features, list[str], CKA | None]:
    """Returns features as in evaluation and, if the backbone has layers, the CKA between them."""
    try:
        layers = Layers(subject.backbone)
    except UserError as reason:
        notes.append(f"no CKA: {reason}")
        parts = [
            _features(subject, batch, subject.views.evaluation_view)
            for batch in _batches(subject, settings.images, settings)
        ]
        return concatenate(parts), [], None
    cka, parts = CKA(), []
    with layers.recording():
        for batch in _batches(subject, settings.images, settings):
            parts.append(_features(subject, batch, subject.views.evaluation_view))
            outputs = layers.taken()
            cka.update(outputs, outputs)
    return concatenate(parts), layers.names, cka


def _in_views(subject: AnalysisSubject, settings: Settings) -> Tensor:
    """Returns features [n, q, D] of the run's first view, drawn q times."""
    total, first, rows = min(settings.lidar_images, len(subject.source)), 0, []
    for batch in _batches(subject, settings.lidar_images, settings):
        views = []
        for number in range(settings.lidar_views):
            key = ViewKey(settings.seed, number, first, total)
            views.append(_features(subject, batch, partial(_first_view, subject.views, batch.ids, key)).x)
        rows.append(torch.stack(views, 1))
        first += len(batch.ids)
    return torch.cat(rows)


def _first_view(views: Views, ids: Tensor, key: ViewKey, images: Tensor, sizes: Tensor | None) -> Tensor:
    made: tuple[Tensor, ...] = views(images, ids.to(images.device), key, 1, sizes)
    return made[0]


def _under_augmentations(subject: AnalysisSubject, settings: Settings) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns, by the augmentation's name, the features of images and of the augmented images, [n, D] each."""
    found: dict[str, list[Tensor]] = {}
    plain: list[Tensor] = []
    total = min(settings.lidar_images, len(subject.source))
    for batch in _batches(subject, settings.lidar_images, settings):
        key = ViewKey(settings.seed, 0, sum(map(len, plain)), total)
        images = subject.views.evaluation_view(*batch_to_device(batch, subject.device))
        plain.append(_features(subject, batch, partial(_precomputed, images)).x)
        for name, changed in augment_each(subject.views, images, key):
            rows = _features(subject, batch, partial(_precomputed, changed)).x
            found.setdefault(name, []).append(rows)
    return {name: (torch.cat(plain), torch.cat(rows)) for name, rows in found.items()}


def _precomputed(made: Tensor, images: Tensor, sizes: Tensor | None) -> Tensor:
    return made


def _attention(subject: AnalysisSubject, settings: Settings) -> tuple[Tensor | None, float | None, dict[str, Tensor]]:
    transformer = find_transformer(subject.backbone)
    if transformer is None:
        return None, None, {}
    batch = next(iter(_batches(subject, ATTENTION_IMAGES, settings)))
    images = subject.views.evaluation_view(*batch_to_device(batch, subject.device))
    distances = attention_distance(subject.backbone, images)
    pictures = attention_pictures(subject.backbone, subject.views, images[:ROLLOUTS])
    return distances, uniform_attention_distance(transformer, images.shape[2]), pictures


def _apply_head(head: nn.Module, device: torch.device, features: Tensor) -> Tensor:
    """Passes features [..., D] through a head, on the device: [..., D']."""
    rows = features.flatten(0, -2).to(device)
    labels = torch.zeros(len(rows), dtype=torch.long)
    made = apply_head(head, Features(rows, labels, labels)).x
    return made.reshape(*features.shape[:-1], made.shape[1])

"""Runs all probes on a frozen backbone and on its baselines: itself before training, raw pixels, and chance."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.distributed import rank
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, PixelNetwork, apply_head, state_hash
from unlabeled.evaluation.probe import (
    MEAN_PER_CLASS,
    Head,
    ImageProbe,
    Probe,
    Score,
    Task,
    add_metrics,
    imbalanced,
    kinds_of,
    notes_on_labels,
)

Log = Callable[[str], None]
Extract = Callable[[nn.Module, str, Sequence[str]], Features]  # network, split, kinds → their features
# What a row has in tensors, which results.json does not hold.
TENSORS = ("predictions", "log_probabilities", "uncertainty", "head")
SPLITS = ("train", "test")


OWN_ANSWERS = ("classifier", "clusters")  # how protocols of methods begin that answer by themselves


@dataclass
class Row:
    """One number of the report: its features, its protocol, and the facts needed to trust it."""

    features: str  # "pretrained", "start", "random init", "raw pixels" or "chance"
    protocol: str
    top1: float  # per cent of the test images
    chosen: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    n_train: int = 0  # labelled images
    n_test: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # further metrics, as in Score
    draws: list[float] = field(default_factory=list)  # top-1 of each draw, where top1 is their mean
    interval: tuple[float, float] | None = None  # of top1, 95 %, by resampling test images
    measured: str | None = None  # date and time of its evaluation, ISO 8601
    predictions: Tensor | None = None  # int64 [n_test], as in Score; not part of results.json
    log_probabilities: Tensor | None = None  # float32 [n_test, C]; not part of results.json
    uncertainty: dict[str, Tensor] = field(default_factory=dict)  # float32 [n_test] each; not part of results.json
    head: Head | None = None  # of the pretrained features alone; not part of results.json

    def as_dict(self) -> dict[str, Any]:
        """Returns the row as results.json stores it."""
        return {name: value for name, value in vars(self).items() if name not in TENSORS}


def evaluate_probes(
    backbone: nn.Module,
    random_backbone: nn.Module | None,
    extract: Extract,
    probes: Mapping[str, Probe | ImageProbe],
    num_classes: int,
    device: torch.device | str = "cpu",
    raw_pixels: bool = True,
    log: Log = print,
    heads: Mapping[str, Mapping[str, nn.Module]] | None = None,
    task: Callable[[nn.Module], Task] | None = None,
    on_features: Callable[[str, Features, Features], None] | None = None,
    start_backbone: nn.Module | None = None,
) -> list[Row]:
    """Runs every probe on features of ``backbone``, of ``random_backbone`` and on pixels; adds two rows of chance.

    Args:
        extract: gives the features of a split, ``train`` or ``test``, by a network, in an order that is always the
            same; images without a label are left out here.
        random_backbone, raw_pixels: None and False skip these baselines.
        heads: for a probe's name and a kind of features, the head that is applied before that probe; kinds without a
            head are not evaluated.
        task: makes the input of probes that train on images; these never run on raw pixels, and on the random backbone
            only if they ask for it.
        on_features: called with the name of each network and its features of train and of test, e.g. to draw them.

        start_backbone: with the weights that the run started from, where these were no random ones.

    Global random states are left as found. Probes run on ``device``.

    Raises:
        RuntimeError: the state of ``backbone`` is not bit for bit the same afterwards.
        UserError: a label is not below ``num_classes``, or nothing is labelled.
    """
    beside = {"start": start_backbone, "random init": random_backbone}
    beside["raw pixels"] = PixelNetwork() if raw_pixels else None
    networks = {"pretrained": backbone} | {name: network for name, network in beside.items() if network is not None}
    rows: list[Row] = []
    reference: Features | None = None
    kinds = tuple(dict.fromkeys(kind for probe in probes.values() for kind in kinds_of(probe)))
    with check_unchanged(backbone):
        for name, network in networks.items():
            known = ("last",) if isinstance(network, PixelNetwork) else kinds
            train, test = (_labelled(name, split, network, extract, known, num_classes, log) for split in SPLITS)
            _same_images(reference, test, name)
            reference = test
            if on_features is not None:
                on_features(name, train, test)
            able = {key: probe for key, probe in probes.items() if set(kinds_of(probe)) <= {*known}}
            rows += _run(name, able, train.to(device), test.to(device), num_classes, log, heads or {})
            if task is not None:
                rows += _run_on_images(name, network, able, task, log)
    assert reference is not None
    if random_backbone is not None:
        _note_equal_weights(rows, backbone, random_backbone)
    for note in notes_on_labels(reference.labels, num_classes, "test"):
        log(note)
        for row in rows:
            row.notes.append(note)
    return rows + chance_rows(reference.labels, num_classes)


def chance_rows(labels: Tensor, num_classes: int) -> list[Row]:
    """Returns two rows without features: always the largest class of the test labels, and a uniform guess."""
    counts = labels.bincount()
    majority, uniform = 100 * int(counts.max()) / len(labels), 100 / num_classes
    per_class = 100 / int((counts > 0).sum()), uniform
    each = [{MEAN_PER_CLASS: value} if imbalanced(labels) else {} for value in per_class]
    return [
        Row(
            "chance",
            "chance/majority-class",
            majority,
            {"class_counted_on": "test"},
            n_test=len(labels),
            metrics=each[0],
        ),
        Row("chance", "chance/uniform", uniform, {"classes": num_classes}, n_test=len(labels), metrics=each[1]),
    ]


@contextmanager
def check_unchanged(network: nn.Module) -> Iterator[None]:
    """Raises RuntimeError if the state_dict of ``network`` differs at the end of the block (MoCo's sanity check)."""
    before = state_hash(network)
    yield
    after = state_hash(network)
    if after != before:
        raise RuntimeError(
            f"the evaluation changed the backbone (state {before[:12]} became {after[:12]}): its numbers are void; "
            "look for a hook, or a layer that updates buffers in eval mode"
        )


def _labelled(
    name: str, split: str, network: nn.Module, extract: Extract, kinds: Sequence[str], num_classes: int, log: Log
) -> Features:
    start = time.perf_counter()
    features = extract(network, split, kinds)
    n, dim = features.x.shape
    log(f"{name}: {dim} features of {n:,} {split} images in {time.perf_counter() - start:.1f} s")
    labelled = features.labelled()
    if not len(labelled.labels):
        raise UserError(f"none of the {n} {split} images has a label: there is nothing to evaluate the features with")
    if int(labelled.labels.max()) >= num_classes:
        raise UserError(
            f"{split} label {int(labelled.labels.max())}; with {num_classes} classes, 0 to {num_classes - 1}"
        )
    return labelled


def _run(
    name: str,
    probes: Mapping[str, Probe | ImageProbe],
    train: Features,
    test: Features,
    classes: int,
    log: Log,
    heads: Mapping[str, Mapping[str, nn.Module]],
) -> list[Row]:
    rows = []
    for probe_name, probe in probes.items():
        if isinstance(probe, ImageProbe) or not _runs_here(probe):
            continue
        own = heads.get(probe_name)
        if own is not None and name not in own:
            continue
        start = time.perf_counter()
        seen = (train, test) if own is None else (apply_head(own[name], train), apply_head(own[name], test))
        scores = probe.fit_predict(*seen, classes)
        seconds = time.perf_counter() - start
        for score in scores:
            add_metrics(score, test.labels)
            log(f"{name}: {score.top1:.2f} % {score.protocol} ({seconds:.1f} s)")
            if name == "pretrained":
                for note in score.notes:
                    log(f"  {note}")
            rows.append(make_row(name, score, len(train.labels), len(test.labels)))
    return rows


def _run_on_images(
    name: str,
    network: nn.Module,
    probes: Mapping[str, Probe | ImageProbe],
    task: Callable[[nn.Module], Task],
    log: Log,
) -> list[Row]:
    rows = []
    for probe in probes.values():
        if not isinstance(probe, ImageProbe) or isinstance(network, PixelNetwork) or not _runs_here(probe):
            continue
        if name == "pretrained" or probe.baselines:
            start, given = time.perf_counter(), task(network)
            for score in probe.train_predict(given):
                labels = given.test_labels if score.labels is None else score.labels
                add_metrics(score, labels)
                log(f"{name}: {score.top1:.2f} % {score.protocol} ({time.perf_counter() - start:.1f} s)")
                rows.append(make_row(name, score, len(given.train_labels), len(labels)))
    return rows


def _runs_here(probe: object) -> bool:
    """Checks whether this process runs the probe: the first runs all, the others those that share work."""
    return rank() == 0 or bool(getattr(probe, "shared", False))


def make_row(features: str, score: Score, n_train: int, n_test: int) -> Row:
    """Makes a row of the report from a score."""
    return Row(
        features,
        score.protocol,
        score.top1,
        score.chosen,
        score.notes,
        n_train if score.n_train is None else score.n_train,
        n_test,
        score.metrics,
        score.draws,
        predictions=score.predictions,
        log_probabilities=score.log_probabilities,
        uncertainty=score.uncertainty,
        head=score.head if features == "pretrained" else None,  # the others would only take memory
    )


def _same_images(first: Features | None, second: Features, name: str) -> None:
    if first is not None and not torch.equal(first.ids, second.ids):
        raise RuntimeError(
            f"the test batches gave other images for {name} than before: they must be the same each time"
        )


def _note_equal_weights(rows: list[Row], backbone: nn.Module, random_backbone: nn.Module) -> None:
    if state_hash(backbone) == state_hash(random_backbone):
        for row in rows:
            if row.features == "pretrained":
                row.notes.append("The pretrained weights are those of the random initialisation: nothing was learnt.")

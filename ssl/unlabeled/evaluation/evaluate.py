"""Evaluates one checkpoint and writes one report: features, probes, baselines, and the settings behind each number."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unlabeled.core.environment import machine
from unlabeled.core.writing import check_folder, kept_anyway
from unlabeled.distributed import local_only, rank, world_size
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.references import references_for
from unlabeled.evaluation.evaluate_probes import Log, Row, evaluate_probes
from unlabeled.evaluation.extractor import Extractor
from unlabeled.evaluation.features import Features, apply_head
from unlabeled.evaluation.heads.calibration import calibrate_knn
from unlabeled.evaluation.heads.kept import FOLDER as HEADS
from unlabeled.evaluation.heads.kept import HeadContext, write_heads
from unlabeled.evaluation.predictions import add_intervals, write_predictions
from unlabeled.evaluation.probe import ImageProbe, Probe
from unlabeled.evaluation.probes.own_classifier import OwnClassifier
from unlabeled.evaluation.provenance import provenance, trained_epochs
from unlabeled.evaluation.reporting.details.image_cache import ReportImageCache
from unlabeled.evaluation.reporting.details.view_pictures import shrunken, view_pictures
from unlabeled.evaluation.reporting.earlier import TITLE, read_earlier
from unlabeled.evaluation.reporting.report import write_report
from unlabeled.evaluation.reporting.report_sections import ReportImages, best_row, evaluation_images, network_pictures
from unlabeled.evaluation.reporting.results_table import accuracy_table
from unlabeled.evaluation.task import make_tasks
from unlabeled.evaluation.uncertainty.least_sure import write_least_certain
from unlabeled.objective import Backbone, HasClusters, HasHead, Objective
from unlabeled.weights import Checkpoint, folder_of, load_backbone, load_objective
from unlabeled.weights.starting.start import starting_backbone

WITHOUT_LABELS = "without_labels.html"
FILES = ("results.json", "report.md", "report.html", "predictions.safetensors", "least_sure.csv")


@dataclass
class Evaluation:
    """Settings and parts of an evaluation, made by ``build``.

    ``backbone`` and ``random_backbone`` have the same initial weights; the checkpoint is loaded into the first.
    """

    backbone: Backbone
    random_backbone: Backbone | None  # None: no baselines
    extractor: Extractor  # of the data set, on the device
    probes: Mapping[str, Probe | ImageProbe]
    settings: dict[str, Any]  # of probes and seeds, for the report
    config: dict[str, Any]  # resolved, for the report
    # by the names of probes that look behind a head instead of at features: ``head``, ``clusters`` or ``classifier``
    heads: Mapping[str, str] = field(default_factory=dict)
    objective: Objective | None = None  # objective with these; loaded from the checkpoint
    random_objective: Objective | None = None  # the same with random weights
    start_backbone: Backbone | None = None  # with the weights that the run started from; filled by evaluate
    # the run's objective, if it makes pictures for the report
    visualized_objective: Objective | None = None
    keep_heads: bool = True  # what the probes have fitted, to predict with


def evaluate(
    evaluation: Evaluation, checkpoint: Checkpoint, report_dir: Path, command: str, log: Log = print
) -> list[Row]:
    """Evaluates the backbone in ``checkpoint`` and writes ``results.json`` and the report.

    ``log`` receives each number when it is computed, and the table. With several processes each returns rows; only the
    first returns all of them and writes the report. Of several test sets each is evaluated; the further ones have their
    reports in ``report_dir/tests/NAME``.

    Raises:
        UserError: the backbone does not load whole, or there are no labelled test images.
    """
    if rank() == 0:
        check_folder("report_dir", report_dir, FILES)
    load_backbone(checkpoint, evaluation.backbone)
    evaluation = replace(evaluation, start_backbone=starting_backbone(checkpoint, evaluation.random_backbone))
    rows = _evaluate(evaluation, checkpoint, report_dir, command, log)
    for name, other in evaluation.extractor.data.splits.others.items():
        if rank() == 0:
            log(f"\ntest set {name}:")
        on_other = replace(evaluation, extractor=evaluation.extractor.with_test(other), keep_heads=False)
        _evaluate(on_other, checkpoint, report_dir / "tests" / name, command, log)
    return rows


def _evaluate(evaluation: Evaluation, checkpoint: Checkpoint, report_dir: Path, command: str, log: Log) -> list[Row]:
    """Evaluates on one test set."""
    started, clock = datetime.now(UTC), time.perf_counter()
    extractor = evaluation.extractor
    test = extractor.data.splits.test
    if test is None:
        raise UserError(
            "data.test: this data set has no test split to evaluate on; give folds=5 to cross-validate on its"
            " labels, data=PATH of one that has, or data.holdout=0.2 to test on a fifth of these images; of those that"
            " the network was trained on, train anew with it: all were seen"
        )
    extracted: dict[str, tuple[Features, Features]] = {}

    def keep(name: str, train: Features, test: Features) -> None:
        if name == "pretrained":
            extracted[name] = _last(train), _last(test)

    rows = evaluate_probes(
        evaluation.backbone,
        evaluation.random_backbone,
        extractor,
        evaluation.probes,
        len(test.classes),
        extractor.device,
        raw_pixels=evaluation.random_backbone is not None,
        heads=_heads(evaluation, checkpoint),
        task=make_tasks(extractor.data, extractor.views, len(test.classes), extractor.device, extractor.precision),
        log=log if rank() == 0 else _print_nothing,
        on_features=keep,
        start_backbone=evaluation.start_backbone,
    )
    if rank():
        return rows
    asked: dict[str, Any] = {
        "command": command,
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "machine": machine() | {"processes": world_size()},
    }
    for row in rows:
        row.measured = asked["date"]
    add_intervals(rows, extracted["pretrained"][1].labels)
    calibrate_knn(rows, extracted["pretrained"][1].labels, len(test.classes))
    log(f"\n{accuracy_table(rows)}\n")
    _keep_without_labels(report_dir, log)
    with local_only():
        report = kept_anyway(
            report_dir,
            lambda folder: _write(evaluation, rows, extracted["pretrained"], checkpoint, folder, asked, log),
        )
    log(f"the whole report is in {report}")
    return rows


def _keep_without_labels(report_dir: Path, log: Log) -> None:
    """Gives the report of a run without labelled test images another name: no other page has what is in it."""
    page = report_dir / "report.html"
    if page.is_file() and not (report_dir / "results.json").exists():
        page.replace(report_dir / WITHOUT_LABELS)
        log(f"the report without labels is {report_dir / WITHOUT_LABELS} now")


def _write(
    evaluation: Evaluation,
    rows: list[Row],
    extracted: tuple[Features, Features],
    checkpoint: Checkpoint,
    report_dir: Path,
    asked: dict[str, Any],
    log: Log,
) -> Path:
    extractor = evaluation.extractor
    facts = provenance(checkpoint, extractor)
    prints = {split: extractor.fingerprint(split) for split in ("train", "test")} if extractor.cache else {}
    decode = ReportImageCache(extractor.data.splits, prints, extractor.cache, extractor.views.evaluation())
    _, test = extracted
    told = asked | facts | {"settings": evaluation.settings}
    earlier = read_earlier(report_dir, rows, told, test.labels, test.ids)
    if earlier.moved:
        log(f"the former rows of this report are of other weights, images or settings: see {TITLE} in it")
    new, rows = rows, [*rows, *earlier.rows]
    report = write_report(
        report_dir,
        rows,
        asked | facts | {"settings": evaluation.settings, "config": evaluation.config},
        metrics=folder_of(checkpoint.path) / "metrics.jsonl",
        collapsed_at=facts["training"].get("collapsed_at"),
        report_images=_collect_images(evaluation, checkpoint, decode, *extracted),
        references=references_for(checkpoint.config or {}, rows, trained_epochs(checkpoint)),
        earlier=earlier,
    )
    decode.keep()
    write_predictions(report_dir, rows, test.labels, test.ids)
    if evaluation.keep_heads:
        _keep_heads(report_dir / HEADS, new, [row.protocol for row in earlier.rows], checkpoint, extractor)
    if not earlier.rows or best_row(new, lambda row: row.log_probabilities is not None):
        _list_least_sure(report_dir / "least_sure.csv", new, test, extractor)
    return report


def _keep_heads(
    folder: Path, rows: list[Row], earlier: list[str], checkpoint: Checkpoint, extractor: Extractor
) -> None:
    """Keeps what ``unlabeled predict`` needs, and leaves the heads of ``earlier`` protocols."""
    assert extractor.data.splits.test is not None
    context = HeadContext(
        extractor.data.splits.test.classes,
        checkpoint.sha256,
        extractor.views.evaluation(),
        extractor.precision,
        extractor.batch_size,
    )
    for note in write_heads(folder, rows, context, earlier):
        print(note)


def _list_least_sure(path: Path, rows: list[Row], test: Features, extractor: Extractor) -> None:
    """Writes which images to label next, by the row whose probabilities the report shows."""
    row = best_row(rows, lambda row: row.log_probabilities is not None)
    source = extractor.data.splits.test
    if row is None or row.log_probabilities is None or source is None or len(row.log_probabilities) != len(test.ids):
        path.unlink(missing_ok=True)
        return
    names = [source.name(id) for id in test.ids.tolist()]
    write_least_certain(path, names, test.labels, row.log_probabilities.cpu(), row.uncertainty, source.classes)


def _last(features: Features) -> Features:
    """Drops the further kinds of features, which may be large."""
    return Features(features.x, features.labels, features.ids)


def _print_nothing(line: str) -> None:
    pass


def _collect_images(
    evaluation: Evaluation, checkpoint: Checkpoint, decode: ReportImageCache, train: Features, test: Features
) -> ReportImages:
    """Collects the pictures of the evaluated network, about ninety images."""
    splits, views = evaluation.extractor.data.splits, evaluation.extractor.views
    visualized_objective = (
        None if evaluation.visualized_objective is None else load_objective(checkpoint, evaluation.visualized_objective)
    )
    attention, pictures = network_pictures(evaluation.backbone, visualized_objective, decode, views, test, seed=0)
    seen = view_pictures(decode, views, train, seed=0) if checkpoint.config else None
    assert splits.test is not None
    sources = {"train": splits.train, "test": splits.test}
    images = evaluation_images(decode, views)

    def name(split: str, id: int) -> str:
        return sources[split].name(id)

    def small(ids: Sequence[int]) -> Tensor:
        return decode.small("test", ids, partial(shrunken, views=views))

    clusters = _own_clusters(evaluation, test)
    return ReportImages(splits.test.classes, train, test, images, attention, pictures, name, small, seen, clusters)


def _own_clusters(evaluation: Evaluation, test: Features) -> Tensor | None:
    """Returns log probabilities of the method's own clusters [N, C], on the CPU, where a probe asked for them."""
    objective = evaluation.objective
    if objective is None or "clusters" not in evaluation.heads.values():
        return None
    return apply_head(_head(objective, "clusters"), test).x.cpu()


def _heads(evaluation: Evaluation, checkpoint: Checkpoint) -> dict[str, dict[str, nn.Module]]:
    """Returns heads for each probe that needs one: trained for pretrained features, random for random features.

    A classifier of the objective is of the pretrained features alone.
    """
    objective, untrained = evaluation.objective, evaluation.random_objective
    if objective is None:
        return {}
    load_objective(checkpoint, objective)
    assert evaluation.extractor.data.splits.test is not None
    for probe in evaluation.probes.values():
        if isinstance(probe, OwnClassifier):
            probe.match(checkpoint.classes, evaluation.extractor.data.splits.test.classes)
    networks = {"pretrained": objective} | ({} if untrained is None else {"random init": untrained})
    return {
        probe: {
            name: _head(each, which) for name, each in networks.items() if which != "classifier" or each is objective
        }
        for probe, which in evaluation.heads.items()
    }


def _head(objective: Objective, which: str) -> nn.Module:
    if which == "classifier":  # the probe has it
        return nn.Identity()
    if which == "clusters":
        assert isinstance(objective, HasClusters)
        return objective.clusters()
    assert isinstance(objective, HasHead)
    return objective.head()

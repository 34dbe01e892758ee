"""From a composed configuration to the parts of an evaluation: what ``build.py`` is for a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.build.network import build_backbone, build_objective
from unlabeled.commands.build.run import build_data, build_probes, check_kinds
from unlabeled.commands.build.trainer import resolve_precision
from unlabeled.commands.from_file import data_of, part_of, seed_of
from unlabeled.core.file_config import check_opened
from unlabeled.data.module import DataModule
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import world_size
from unlabeled.distributed.launch import local_rank
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import TensorCache, cache_folder
from unlabeled.evaluation.evaluate import Evaluation
from unlabeled.evaluation.extractor import Extractor
from unlabeled.evaluation.probe import ImageProbe, Probe
from unlabeled.evaluation.probes.clustering import OwnClusters
from unlabeled.evaluation.probes.few_labels import FewLabels
from unlabeled.evaluation.probes.folds import CrossValidated
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.own_classifier import OwnClassifier
from unlabeled.evaluation.probes.paws_nn import SoftNearestNeighbours
from unlabeled.objective import HasClassifier, HasClusters, HasHead, HasVisualization, Objective
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, check_same_backbone


def complete_config(
    config: DictConfig, checkpoint: Checkpoint, needs: Sequence[str] = ("data", "views", "backbone", "objective")
) -> DictConfig:
    """The configuration of an evaluation, with what it leaves open taken from the checkpoint's own run.

    ``data`` without a ``_target_`` holds single keys of the run's own data: ``data.path``, where its images are now.
    What comes from the checkpoint is checked first, see :mod:`unlabeled.commands.from_file`.

    Raises:
        UserError: the checkpoint does not say it either, and it is among ``needs``; or says what may not be built.
    """
    own, file = checkpoint.config, checkpoint.path
    if config.get("backbone") and own is not None:
        asked: Any = OmegaConf.to_container(config.backbone, resolve=True)
        check_same_backbone(checkpoint, asked)
    config = OmegaConf.create({**config, "seed": seed_of(own, config.seed, file)})
    config["objective"] = part_of(own, "objective", file) if "objective" in needs else None
    config["data"] = data_of(config.get("data"), own, file, "data" in needs)
    for name in ("views", "backbone"):
        config[name] = config.get(name) or part_of(own or checkpoint.described, name, file)
    for name in ("data", "views", "backbone"):
        if config[name] is None and name in needs:
            raise UserError(f"checkpoint={file} does not say what it was made with: give {name}=…")
    _check_lists(config, file)
    return config


def _check_lists(config: DictConfig, file: Path) -> None:
    """A list of labels that a file names is opened by two probes alone."""
    probes = (probe for probe in (config.get("probe") or {}).values() if probe)
    lists = (".SoftNearestNeighbours", ".OwnClassifier")
    if config["objective"] and any(str(probe.get("_target_")).endswith(lists) for probe in probes):
        check_opened("objective", config["objective"], file, ("labels_file",))


def build_evaluation(
    config: DictConfig, data: DataModule | None = None, accelerator: str = "auto", precision: str = "32-true"
) -> Evaluation:
    """The parts for evaluating a checkpoint, from the configuration of a run or of :func:`complete_config`.

    Args:
        config: holds backbone, views, data, probe, seed, batch_size, num_workers, memory_gib, cache and cache_gib.
        data: what the run has loaded already.
        accelerator: ``cpu``, or anything else for a GPU if there is one.
        precision: of the forward passes; 32-true whatever the run was trained in, so that numbers compare.
    """
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    precision = resolve_precision(precision, accelerator)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    data, probes = data or build_data(config), build_probes(config)
    if probes:
        _require_labels(data, resolved["data"])
    if config.get("folds") is not None:
        data, probes = in_folds(data, probes, config.folds, config.seed)
    for probe in probes.values():
        if isinstance(probe, FewLabels):
            probe.prepare(data.splits.train)
        if isinstance(probe, KNN):
            probe.shared = world_size() > 1  # each process searches its part of the bank
    objective, random_objective, heads = prepare_heads(probes, config, data)
    objective, own_classifiers = prepare_own_classifiers(probes, config, data, objective)
    trained = resolved["backbone"]  # resolved: an interpolation needs the root of the configuration
    network = OmegaConf.create(
        {**trained, "freeze": None} if trained.get("freeze") else trained
    )  # a probe may train all
    backbone = build_backbone(network, config.seed)
    check_kinds(config, backbone)
    views: Views = instantiate(config.views)
    backbone.check_size(views.size)
    views.require_channels(data.splits.train)
    if backbone.channels != views.channels:
        raise UserError(f"views.channels={views.channels}: the backbone takes images of {backbone.channels} channels")
    extractor = Extractor(
        data,
        views,
        torch.device(f"cuda:{local_rank()}" if gpu else "cpu"),
        precision,
        config.batch_size,
        TensorCache(cache_folder(config.cache), config.cache_gib),
    )
    return Evaluation(
        backbone=backbone,
        random_backbone=build_backbone(network, config.seed),
        extractor=extractor,
        probes=probes,
        settings={"probe": resolved["probe"], "seed": config.seed, "precision": precision},
        config=resolved,
        heads=heads | dict.fromkeys(own_classifiers, "classifier"),
        objective=objective,
        random_objective=random_objective,
        visualized_objective=build_visualized_objective(config),
    )


def _require_labels(data: DataModule, named: Mapping[str, Any] | None) -> None:
    test = data.splits.test
    if test is not None and not bool((test.labels >= 0).any()):
        raise UserError(
            "data.test: none of its images has a label, so that nothing can be compared with them; give data.test=… of"
            " images with labels, or folds=5 with data.test=none"
        )
    if bool((data.splits.train.labels >= 0).any()):
        return
    key = f"data.path={named['path']}" if named and named.get("path") else "data"
    raise UserError(
        f"{key}: these images have no labels, which an evaluation needs; give data=FOLDER of class folders, with "
        "data.holdout=0.2 where it has no test split"
    )


def in_folds(
    data: DataModule, probes: Mapping[str, Probe | ImageProbe], folds: int, seed: int
) -> tuple[DataModule, dict[str, Probe | ImageProbe]]:
    """The training split in the place of a test split, and probes that divide it.

    Probes of few labels draw their own lists, and are left out.

    Raises:
        UserError: there is a test split, or a probe trains on images or is fitted on a list.
    """
    if data.splits.test is not None:
        raise UserError(f"folds={folds}: these data have a test split; leave folds out")
    divided: dict[str, Probe | ImageProbe] = {}
    for name, probe in probes.items():
        if isinstance(probe, ImageProbe | SoftNearestNeighbours | OwnClusters | OwnClassifier):
            raise UserError(f"folds={folds}: probe.{name} cannot be cross-validated; give probe=quick or linear")
        if not isinstance(probe, FewLabels):
            divided[name] = CrossValidated(probe, folds, seed)
    if not divided:
        raise UserError(f"folds={folds}: few labels are drawn from a training split; give probe=quick or linear")
    return data.with_test(data.splits.train), divided


def build_visualized_objective(config: DictConfig) -> Objective | None:
    """The run's objective where it makes pictures; None where it does not, or the checkpoint knows of none."""
    if not config.get("objective"):
        return None
    objective = build_objective(config)
    return objective if isinstance(objective, HasVisualization) else None


def build_self_test(config: DictConfig) -> Callable[[Checkpoint], Evaluation]:
    """How the checkpoint of the self-test is evaluated: with the settings that it carries, on the CPU, nothing kept."""

    def build(checkpoint: Checkpoint) -> Evaluation:
        whole = complete_config(config, checkpoint)
        assert checkpoint.config is not None
        whole.update({"probe": checkpoint.config["probe"], "cache_gib": 0.0})
        return build_evaluation(whole, None, "cpu")

    return build


def prepare_heads(
    probes: Mapping[str, Probe | ImageProbe], config: DictConfig, data: DataModule
) -> tuple[Objective | None, Objective | None, dict[str, str]]:
    """Give probes that look behind a head the run's objective, twice, and soft neighbours the run's list of labels.

    Returns:
        An objective to load, a random one, and by the name of each such probe what its head is called in these; none
        where there is no such probe or no head.

    Raises:
        UserError: the run's clusters are asked for, and its method makes none.
    """
    ours = {name: each for name, each in probes.items() if isinstance(each, SoftNearestNeighbours | OwnClusters)}
    if not ours:
        return None, None, {}
    own = [build_objective(config) for _ in range(2)] if config.get("objective") else []
    support = own[0].support if own and isinstance(own[0], NeedsSupport) else None
    has_head, heads = bool(own) and isinstance(own[0], HasHead), {}
    for name, probe in ours.items():
        if isinstance(probe, OwnClusters):
            _require_clusters(name, own)
            heads[name] = "clusters"
            continue
        choice = None if support is None else support.choice
        probe.prepare(data.splits.train, choice, "head" if has_head else "backbone")
        heads |= {name: "head"} if has_head else {}
    return (own[0], own[1], heads) if heads else (None, None, {})


def _require_clusters(name: str, own: Sequence[Objective]) -> None:
    if not own or not isinstance(own[0], HasClusters):
        method = type(own[0]).__name__ if own else "this checkpoint"
        raise UserError(f"probe.{name}: {method} makes no clusters of its own: give probe=kmeans, or a run of SCAN")


def prepare_own_classifiers(
    probes: Mapping[str, Probe | ImageProbe], config: DictConfig, data: DataModule, objective: Objective | None
) -> tuple[Objective | None, list[str]]:
    """Give such probes the classifier of the run's objective, with the number of labels that it was trained with.

    Returns:
        The objective to load, ``objective`` itself where there is one already; and the names of these probes.
    """
    ours = {name: probe for name, probe in probes.items() if isinstance(probe, OwnClassifier)}
    if ours and objective is None and config.get("objective"):
        objective = build_objective(config)
    classifier = objective.own_classifier() if isinstance(objective, HasClassifier) else None
    few = objective.support.choice if ours and isinstance(objective, NeedsSupport) else None
    for probe in ours.values():
        probe.prepare(classifier, None if few is None else len(few.of(data.splits.train).ids))
    return objective, list(ours)

"""From a composed configuration to the parts of an evaluation: what ``build.py`` is for a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.build.run import build_backbone, build_data, build_objective, build_probes, resolve_precision
from unlabeled.data.module import DataModule
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import world_size
from unlabeled.distributed.launch import local_rank
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import TensorCache, cache_folder
from unlabeled.evaluation.evaluate import Evaluation
from unlabeled.evaluation.extractor import Extractor
from unlabeled.evaluation.probe import ImageProbe, Probe, kinds_of
from unlabeled.evaluation.probes.few_labels import FewLabels
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.paws_nn import SoftNearestNeighbours
from unlabeled.objective import HasHead, HasVisualization, Objective
from unlabeled.weights import Checkpoint, check_same_backbone


def complete_config(
    config: DictConfig, checkpoint: Checkpoint, needs: Sequence[str] = ("data", "views", "backbone")
) -> DictConfig:
    """The configuration of an evaluation, with what it leaves open taken from the checkpoint's own run.

    Raises:
        UserError: the checkpoint does not say it either, and it is among ``needs``.
    """
    own = OmegaConf.create(checkpoint.config or {})
    if config.get("backbone") and checkpoint.config is not None:
        asked: Any = OmegaConf.to_container(config.backbone, resolve=True)
        check_same_backbone(checkpoint, asked)
    config = OmegaConf.create({**config, "seed": own.get("seed", config.seed)})
    config["objective"] = own.get("objective")
    for name in ("data", "views", "backbone"):
        config[name] = config.get(name) or own.get(name)
        if config[name] is None and name in needs:
            raise UserError(f"checkpoint={checkpoint.path} does not say what it was made with: give {name}=…")
    return config


def build_evaluation(
    config: DictConfig, data: DataModule | None = None, accelerator: str = "auto", precision: str = "32-true"
) -> Evaluation:
    """The parts for judging a checkpoint, from the configuration of a run or of :func:`complete_config`.

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
    for probe in probes.values():
        if isinstance(probe, FewLabels):
            probe.prepare(data.splits.train)
        if isinstance(probe, KNN):
            probe.shared = world_size() > 1  # each process searches its part of the bank
    objective, random_objective, probes_on_embeddings = prepare_soft_neighbours(probes, config, data)
    backbone = build_backbone(config.backbone, config.seed)
    backbone.check_kinds([kind for probe in probes.values() for kind in kinds_of(probe)])
    extractor = Extractor(
        data,
        instantiate(config.views),
        torch.device(f"cuda:{local_rank()}" if gpu else "cpu"),
        precision,
        config.batch_size,
        TensorCache(cache_folder(config.cache), config.cache_gib),
    )
    return Evaluation(
        backbone=backbone,
        random_backbone=build_backbone(config.backbone, config.seed),
        extractor=extractor,
        probes=probes,
        settings={"probe": resolved["probe"], "seed": config.seed, "precision": precision},
        config=resolved,
        probes_on_embeddings=probes_on_embeddings,
        objective=objective,
        random_objective=random_objective,
        visualized_objective=build_visualized_objective(config),
    )


def build_visualized_objective(config: DictConfig) -> Objective | None:
    """The run's objective where it makes pictures; None where it does not, or the checkpoint knows of none."""
    if not config.get("objective"):
        return None
    objective = build_objective(config)
    return objective if isinstance(objective, HasVisualization) else None


def build_self_test(config: DictConfig) -> Callable[[Checkpoint], Evaluation]:
    """How the checkpoint of the self-test is judged: with the settings that it carries, on the CPU, nothing kept."""

    def build(checkpoint: Checkpoint) -> Evaluation:
        whole = complete_config(config, checkpoint)
        assert checkpoint.config is not None
        whole.update({"probe": checkpoint.config["probe"], "cache_gib": 0.0})
        return build_evaluation(whole, None, "cpu")

    return build


def prepare_soft_neighbours(
    probes: Mapping[str, Probe | ImageProbe], config: DictConfig, data: DataModule
) -> tuple[Objective | None, Objective | None, list[str]]:
    """Give such probes the run's list of labels, and the run's objective, twice, where its head goes before them.

    Returns:
        An objective to load, a random one, and the names of the probes behind their heads; none where there is no such
        probe or no head.
    """
    ours = {name: probe for name, probe in probes.items() if isinstance(probe, SoftNearestNeighbours)}
    if not ours:
        return None, None, []
    own = [build_objective(config) for _ in range(2)] if config.get("objective") else []
    support = own[0].support if own and isinstance(own[0], NeedsSupport) else None
    has_head = bool(own) and isinstance(own[0], HasHead)
    for probe in ours.values():
        choice = None if support is None else support.choice
        probe.prepare(data.splits.train, choice, "head" if has_head else "backbone")
    return (own[0], own[1], list(ours)) if has_head else (None, None, [])

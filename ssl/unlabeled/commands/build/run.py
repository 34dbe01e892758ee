"""From a composed configuration to objects. Besides the scripts and ``config.py`` nothing else knows Hydra."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from unlabeled.backbones.small_maps import guard_small_maps
from unlabeled.commands.build.companions import attach_companions, attach_support, draw_by_class
from unlabeled.commands.build.network import build_objective, pretext_of, read_weights
from unlabeled.commands.build.teacher import TeacherLoader
from unlabeled.commands.build.trainer import build_trainer
from unlabeled.commands.checks.former_run import check_same
from unlabeled.commands.from_file import part_of, progressive_sizes_of, seed_of
from unlabeled.core.file_config import as_data, check_opened
from unlabeled.data.module import DataModule
from unlabeled.data.order import batch_size_for, check_batch_size
from unlabeled.data.source import Source, Splits
from unlabeled.distributed import preflight
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.errors import UserError
from unlabeled.evaluation.probe import ImageProbe, Probe, kinds_of, notes_on_labels
from unlabeled.objective import Backbone, ContinuesAnother, Objective, Plan
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.training.faults.guard import NonFiniteGuard
from unlabeled.training.faults.record import read_record
from unlabeled.training.faults.replay import Replay
from unlabeled.training.machine.allocation import keep_freed_memory
from unlabeled.training.machine.compilation import compile_network
from unlabeled.training.machine.overlap import overlap_on
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.run import Run
from unlabeled.training.run_lock import Held, RunLock
from unlabeled.views.pipeline import Views
from unlabeled.views.preview.preview import Preview
from unlabeled.views.progressive import ProgressiveViews
from unlabeled.weights.starting.start import StartingWeights


def build_run(config: DictConfig, resolved: dict[str, Any], command: str = "") -> Run:
    """Everything that ``train.py`` needs; what cannot work together is refused before an image is read.

    Args:
        config: as composed from ``conf/train.yaml``.
        resolved: the same as plain values, to travel in the checkpoints.
        command: that goes on with the run, for ``state.json``.
    """
    checkpoints = CheckpointFolder(Path(config.run_dir) / "checkpoints", config.checkpoints_kept)
    trainer = build_trainer(config, checkpoints, command)
    lock = _lock(config, trainer)
    _check_values(checkpoints, resolved)
    data = _data_of(config, trainer)
    views = _views_for(data.splits, config)
    start = read_weights(resolved, checkpoints)
    teacher = TeacherLoader(checkpoints.folder, views, config, resolved)
    objective = build_objective(config, start, teacher)
    plan = check_combination(objective, views, data.splits.train, data.batch_size, trainer.world_size)
    instantiate(config.optimizer).groups(objective)  # is refused before anything is written
    smallest = _smallest_view(config.progressive_resizing, views, objective.backbone, plan)
    if trainer.strategy.root_device.type == "cpu" and trainer.precision == "bf16-mixed":
        guard_small_maps(objective.backbone, smallest)
    if trainer.is_global_zero:
        _say_origins(start, teacher)
        _say_what_counts(objective, teacher, config.weights, config.weights_of)
    check_kinds(config, objective.backbone)
    attach_support(data, objective, trainer.world_size)
    draw_by_class(data, objective, config.images_per_class)
    _connect(config, resolved, trainer, objective, data, checkpoints)
    data.plan(config.max_epochs, config.max_steps, trainer.strategy.root_device)
    attach_companions(config, data, views, objective, checkpoints, trainer, partial(pretext_of, config, start))
    if config.progressive_resizing is not None:
        views = ProgressiveViews(views, config.progressive_resizing, data.total_steps, config.accumulate)
    module = _module(config, resolved, objective, views, plan, data)
    module.weights, module.teacher = None if start is None else start.record(), teacher.record
    if overlap := overlap_on(trainer.strategy.root_device):
        module.overlap, data.around = overlap, overlap.around
    return Run(trainer, module, data, checkpoints, lock)


def _data_of(config: DictConfig, trainer: pl.Trainer) -> DataModule:
    """The data set in batches that fit it, and what the first process says of it."""
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    data = build_data(config)
    train = data.splits.train
    data.batch_size = batch_size_for(config.batch_size, len(train))
    check_batch_size(data.batch_size, len(train), trainer.world_size, config.accumulate)
    if trainer.is_global_zero:
        if data.batch_size != config.batch_size:
            taken = f"there are {len(train)} training images; {data.batch_size} are taken"
            print(f"batch_size={config.batch_size}: {taken}")
        for note in notes_on_labels(train.labels, train.classes, "training"):
            print(note)
    _check_probes(config, data)
    return data


def _views_for(splits: Splits, config: DictConfig) -> Views:
    """The views, which fit the images' channels and have the masks that they take."""
    views: Views = instantiate(config.views)
    views.require_channels(splits.train)
    views.require_masks(splits.train)
    return views


def _smallest_view(sizes: Sequence[tuple[float, int]] | None, views: Views, backbone: Backbone, plan: Plan) -> int:
    """Height and width of the smallest view of the run, pixels.

    Raises:
        UserError: the run is to have smaller views for its first steps, and they or its network cannot be so.
    """
    if sizes is None:
        return min(plan.views)
    if backbone.image_size is not None:
        raise UserError(
            f"progressive_resizing: {type(backbone).__name__} is built for images of {backbone.image_size} pixels:"
            " leave the key out, or take a ResNet or another convolutional network"
        )
    first = ProgressiveViews(views, sizes, 1).phases[0].views
    return max(1, round(min(plan.views) * first.size / views.size))


def _connect(
    config: DictConfig,
    resolved: dict[str, Any],
    trainer: pl.Trainer,
    objective: Objective,
    data: DataModule,
    checkpoints: CheckpointFolder,
) -> None:
    """The network compiled where that is asked for, and the processes of the run joined."""
    if config.compile is not None:
        sharded = isinstance(trainer.strategy, FullySharded)
        compile_network(objective, config.compile, trainer.strategy.root_device, trainer.world_size, sharded)
    facts = partial(preflight.run_facts, resolved, checkpoints.newest, len(data.splits.train))
    preflight.connect(trainer, facts, config.preflight_seconds, config.timeout_minutes * 60, checkpoints.newest)


def _module(
    config: DictConfig, resolved: dict[str, Any], objective: Objective, views: Views, plan: Plan, data: DataModule
) -> Pretraining:
    return Pretraining(
        objective,
        views,
        instantiate(config.optimizer),
        plan,
        config.accumulate,
        data.total_steps,
        data.steps_per_epoch,
        config.seed,
        config.log_every_n_steps,
        resolved,
        NonFiniteGuard(Path(config.run_dir) / "faults", config.max_faults_in_a_row),
    )


def _say_what_counts(objective: Objective, teacher: TeacherLoader, weights: str | None, of: str) -> None:
    """What a reader of the numbers must know: labels that were used, a start that is missing."""
    name = type(objective).__name__
    if objective.uses_labels:
        how = f"{name} trains" if teacher.record is None else f"the teacher of {name} was trained"
        print(f"LABELS ARE USED: {how} with them; its numbers are not those of a method")
        print("that sees none.")
    if isinstance(objective, ContinuesAnother) and not weights:
        print(f"warning: {name} goes on from another run, and begins here with random weights: give weights=RUN")
        print("weights_of=all.")
    elif isinstance(objective, ContinuesAnother) and of == "backbone":
        print(f"warning: {name} goes on from another run, and takes the backbone alone of weights={weights}; its heads")
        print("begin with random weights: give weights_of=all.")


def _say_origins(start: StartingWeights | None, teacher: TeacherLoader) -> None:
    if start is not None:
        print(start)
    if teacher.record is not None:
        print(teacher)


def _check_probes(config: DictConfig, data: DataModule) -> None:
    """Raises UserError for a probe that needs more labelled training images than there are."""
    labels = data.splits.train.labels
    labelled = int((labels >= 0).sum())
    single = 0 < labelled == len(labels[labels >= 0].unique())  # type: ignore[no-untyped-call]
    for name, probe in build_probes(config).items():
        if data.splits.test is not None and probe.needs > labelled:
            key = f"probe.{name}.{getattr(probe, 'needs_key', '…')}"
            raise UserError(
                f"probe.{name}: needs {probe.needs} labelled training images, there are {labelled}: give {key} no more"
                " than that, or probe=quick or none"
            )
        if data.splits.test is not None and single and getattr(probe, "chooses", False):
            raise UserError(
                f"probe.{name}: no class has two labelled training images, of which one is needed to choose C on: give"
                f" probe.{name}.c=[1.0], or probe=knn or none"
            )


def _lock(config: DictConfig, trainer: pl.Trainer) -> RunLock | None:
    """One for all processes of a run, held by the first; a plan alone is not written beside a process that trains."""
    if not trainer.is_global_zero:
        return None
    lock = RunLock(Path(config.run_dir))
    trainer.callbacks.insert(0, Held(lock))  # type: ignore[attr-defined]
    return lock


def _check_values(checkpoints: CheckpointFolder, resolved: dict[str, Any]) -> None:
    """Where ``config.yaml`` is gone the newest state says what the run was started with."""
    written = (checkpoints.folder.parent / "config.yaml").exists()
    if written or resolved.get("resume") == "override" or not checkpoints.newest.exists():
        return
    begun = checkpoints.find()
    before = begun and torch.load(begun, map_location="cpu", mmap=True, weights_only=True).get("config")
    if before:
        check_same(as_data(before, str(begun)), resolved)


def build_preview(config: DictConfig) -> Preview:
    """What ``preview=…`` needs of a run: its data and its views, no network."""
    if config.plan_only:
        raise UserError("plan_only=true: preview=… makes no plan; give one of the two")
    splits = build_splits(config)
    batch_size = batch_size_for(config.batch_size, len(splits.train))
    return Preview(_views_for(splits, config), splits, config.seed, batch_size, config.preview)


def build_replay(path: str) -> Replay:
    """What ``replay=FILE`` needs: the views, the objective and the batch of that file, on the CPU."""
    record = read_record(path)
    parts = {
        name: part_of(record["config"], name, Path(path)) for name in ("views", "backbone", "objective", "optimizer")
    }
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise UserError(f"replay={path}: its configuration has no {missing[0]}")
    check_opened("views", record["config"]["views"], Path(path), ("masks",))
    check_opened("objective", record["config"]["objective"], Path(path), ("teacher",))
    config = OmegaConf.create({**parts, "seed": seed_of(record["config"], 0, Path(path))})
    views: Views = instantiate(config.views)
    teacher = TeacherLoader(Path(path).parent.parent / "checkpoints", views)
    if sizes := progressive_sizes_of(record["config"], Path(path)):
        views.compiles = False  # as Replay, before there are several
        views = ProgressiveViews(views, sizes, record["progress"]["total_steps"], record["progress"]["parts"])
    return Replay(record, views, build_objective(config, None, teacher), instantiate(config.optimizer))


def check_combination(objective: Objective, views: Views, train: Source, batch_size: int, processes: int) -> Plan:
    """What the run gives its objective; raises UserError for parts that each can work, and together cannot."""
    classes = len(train.classes) if bool((train.labels >= 0).any()) else None
    plan = Plan(batch_size, processes, len(train), views.sizes(train.image_size), classes)
    objective.check(plan)
    backbone = objective.backbone
    if batch_size < 2 and any(isinstance(module, nn.BatchNorm1d) for module in objective.modules()):
        raise UserError(f"batch_size={batch_size}: BatchNorm of the heads needs two images at least; give more")
    if backbone.channels != views.channels:
        raise UserError(
            f"backbone.channels={backbone.channels}: the views have {views.channels}: give data.channels alone, which"
            " both follow"
        )
    if backbone.image_size is not None and backbone.image_size not in plan.views:
        raise UserError(
            f"backbone: {type(backbone).__name__} is built for images of {backbone.image_size} pixels, the views have"
            f" {list(plan.views)}: give backbone.image_size={max(plan.views)}"
        )
    for size in plan.views:
        backbone.check_size(size)
    return plan


def check_kinds(config: DictConfig, backbone: Backbone) -> None:
    """Raise UserError for a probe of features that the backbone does not have."""
    for name, probe in build_probes(config).items():
        if set(kinds_of(probe)) - set(backbone.kinds):
            key = next((key for key in ("features", "kinds") if key in config.probe[name]), None)
            given = f".{key}={config.probe[name][key]}" if key else ""
            allowed = ", ".join(backbone.kinds)
            raise UserError(f"probe.{name}{given}: {type(backbone).__name__} has no such features; allowed: {allowed}")


def build_splits(config: DictConfig) -> Splits:
    """The data set as a list of images."""
    splits: Splits = instantiate(config.data)
    return splits


def build_data(config: DictConfig) -> DataModule:
    """The data set as batches; lists and labels are read here, images are not."""
    splits = build_splits(config)
    return DataModule(
        splits, config.batch_size, config.num_workers, config.memory_gib, config.seed, config.get("accumulate", 1)
    )


def build_probes(config: DictConfig) -> dict[str, Probe | ImageProbe]:
    """How frozen features are evaluated, by name; none with ``probe=none``, and without one that is null.

    What an experiment sets of a probe that was not chosen has no ``_target_`` and is left alone.
    """
    chosen = config.get("probe") or {}
    return {name: instantiate(probe) for name, probe in chosen.items() if probe is not None and "_target_" in probe}

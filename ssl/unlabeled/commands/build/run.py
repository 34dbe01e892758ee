"""From a composed configuration to objects. Besides the scripts and ``config.py`` nothing else knows Hydra."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from unlabeled.commands.build.companions import Pretext, attach_companions
from unlabeled.commands.build.teacher import TeacherLoader
from unlabeled.commands.checks.former_run import check_same
from unlabeled.commands.config import is_sweep
from unlabeled.commands.from_file import part_of, seed_of
from unlabeled.core.file_config import as_data, check_opened
from unlabeled.data.companions import NeedsCompanions
from unlabeled.data.labels import shared_names
from unlabeled.data.module import DataModule
from unlabeled.data.order import batch_size_for, check_batch_size
from unlabeled.data.source import Source, Splits
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import preflight
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.distributed.sync_batchnorm import AverageBatchNormStats, SyncBatchNorms
from unlabeled.errors import UserError
from unlabeled.evaluation.probe import ImageProbe, Probe, kinds_of, notes_on_labels
from unlabeled.health.heartbeat import Heartbeat
from unlabeled.health.system import SystemLog
from unlabeled.objective import Backbone, ContinuesAnother, HasTeacher, Objective, Plan
from unlabeled.training.checkpointing import Checkpointing
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.training.faults.guard import NonFiniteGuard
from unlabeled.training.faults.record import read_record
from unlabeled.training.faults.replay import Replay
from unlabeled.training.loggers import JsonLines
from unlabeled.training.machine.allocation import keep_freed_memory
from unlabeled.training.machine.compilation import compile_network
from unlabeled.training.machine.overlap import overlap_on
from unlabeled.training.pretraining import Pretraining
from unlabeled.training.progress_bar import RunProgress
from unlabeled.training.run import Run
from unlabeled.training.run_lock import Held, RunLock
from unlabeled.views.pipeline import Views
from unlabeled.views.preview.preview import Preview
from unlabeled.weights import Checkpoint, load_objective
from unlabeled.weights.starting.start import StartingWeights, read_start


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
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    data = build_data(config)
    data.batch_size = batch_size_for(config.batch_size, images := len(data.splits.train))
    if data.batch_size != config.batch_size and trainer.is_global_zero:
        print(f"batch_size={config.batch_size}: there are {images} training images; {data.batch_size} are taken")
    check_batch_size(data.batch_size, len(data.splits.train), trainer.world_size, config.accumulate)
    if trainer.is_global_zero:
        for note in notes_on_labels(data.splits.train.labels, data.splits.train.classes, "training"):
            print(note)
    _check_probes(config, data)
    views: Views = instantiate(config.views)
    views.require_channels(data.splits.train)
    views.require_masks(data.splits.train)
    start = read_weights(resolved, checkpoints)
    teacher = TeacherLoader(checkpoints.folder, views, config, resolved)
    objective = build_objective(config, start, teacher)
    if trainer.is_global_zero:
        _say_origins(start, teacher)
    plan = check_combination(objective, views, data.splits.train, data.batch_size, trainer.world_size)
    if trainer.is_global_zero:
        _say_what_counts(objective, teacher, config.weights, config.weights_of)
    check_kinds(config, objective.backbone)
    attach_support(data, objective, trainer.world_size)
    draw_by_class(data, objective, config.images_per_class)
    if config.compile is not None:
        sharded = isinstance(trainer.strategy, FullySharded)
        compile_network(objective, config.compile, trainer.strategy.root_device, trainer.world_size, sharded)
    facts = partial(preflight.run_facts, resolved, checkpoints.newest, len(data.splits.train))
    preflight.connect(trainer, facts, config.preflight_seconds, config.timeout_minutes * 60, checkpoints.newest)
    data.plan(config.max_epochs, config.max_steps, trainer.strategy.root_device)
    attach_companions(config, data, views, objective, checkpoints, trainer, partial(pretext_of, config, start))
    module = Pretraining(
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
    module.weights, module.teacher = None if start is None else start.record(), teacher.record
    if overlap := overlap_on(trainer.strategy.root_device):
        module.overlap, data.around = overlap, overlap.around
    return Run(trainer, module, data, checkpoints, lock)


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


def read_weights(resolved: dict[str, Any], checkpoints: CheckpointFolder) -> StartingWeights | None:
    """Reads what a run starts from, whose hash goes into ``resolved``; None for nothing, and where the run goes on.

    A run that goes on has the hash from its own checkpoint: the file may be gone by then.
    """
    origin = resolved.get("weights")
    if origin is None:
        return None
    begun = checkpoints.find()
    if begun is not None:
        record = torch.load(begun, map_location="cpu", mmap=True, weights_only=True).get("weights") or {}
        resolved["weights_sha256"] = record.get("sha256")
        return None
    start = read_start(origin, resolved["weights_of"], resolved["weights_sha256"])
    resolved["weights_sha256"] = start.checkpoint.sha256
    return start


def _check_probes(config: DictConfig, data: DataModule) -> None:
    """Raises UserError for a probe that needs more labelled training images than there are."""
    labelled = int((data.splits.train.labels >= 0).sum())
    for name, probe in build_probes(config).items():
        if data.splits.test is not None and probe.needs > labelled:
            key = f"probe.{name}.{getattr(probe, 'needs_key', '…')}"
            raise UserError(
                f"probe.{name}: needs {probe.needs} labelled training images, there are {labelled}: give {key} no more"
                " than that, or probe=quick or none"
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
    views: Views = instantiate(config.views)
    views.require_channels(splits.train)
    views.require_masks(splits.train)
    batch_size = batch_size_for(config.batch_size, len(splits.train))
    return Preview(views, splits, config.seed, batch_size, config.preview)


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
    return Replay(record, views, build_objective(config, None, teacher), instantiate(config.optimizer))


def check_combination(objective: Objective, views: Views, train: Source, batch_size: int, processes: int) -> Plan:
    """What the run gives its objective; raises UserError for parts that each can work, and together cannot."""
    classes = len(train.classes) if bool((train.labels >= 0).any()) else None
    plan = Plan(batch_size, processes, len(train), views.sizes(train.image_size), classes)
    objective.check(plan)
    backbone = objective.backbone
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


def build_loggers(config: DictConfig) -> list[Logger]:
    """What mirrors the metrics, none or several: ``logger=tensorboard``, ``logger=[tensorboard,wandb]``."""
    chosen = config.get("logger") or {}
    for name, logger in chosen.items():
        if not isinstance(logger, DictConfig) or "_target_" not in logger:
            raise UserError(f"logger.{name}: no such logger; give logger=csv, tensorboard or wandb, or [csv,wandb]")
    return [instantiate(logger) for logger in chosen.values()]


def build_trainer(config: DictConfig, checkpoints: CheckpointFolder, command: str) -> pl.Trainer:
    """The trainer with its callbacks and loggers; samples, checkpoints and the length of the run are our own."""
    strategy = config.trainer.strategy
    if "accumulate_grad_batches" in config.trainer:
        raise UserError(
            "trainer.accumulate_grad_batches: give accumulate=…, which learning rate and order of samples know"
        )
    if str(strategy).startswith(("fsdp_", "deepspeed")):
        raise UserError(
            f"trainer.strategy={strategy} cuts weights into flat pieces, where LARS and the lengths of prototypes need "
            "whole tensors: use fsdp (which is FSDP2 here), or ddp"
        )
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    if strategy == "fsdp" and precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={precision}: with trainer.strategy=fsdp give 32-true or bf16-mixed")
    if precision == "16-mixed" and config.trainer.gradient_clip_val and config.optimizer.optimizer.get("fused"):
        raise UserError(
            "trainer.gradient_clip_val: with 16-mixed a fused optimizer scales gradients back after they would be "
            "clipped: give optimizer.optimizer.fused=false, or trainer.precision=bf16-mixed"
        )
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips, no advertisements
    warnings.filterwarnings("ignore", ".*LeafSpec")  # of Lightning 2.6 with torch 2.15; nobody's concern here
    warnings.filterwarnings("ignore", ".*module.* in eval mode at the start")  # those of backbone.freeze mean to be
    if config.plan_only and config.plan is None:
        raise UserError("plan_only=true: plan=null has none; leave one of them out")
    watching = [instantiate(config[name]) for name in ("online_knn", "pictures", "health") if config[name]]
    planning = [] if config.plan is None else [instantiate(config.plan, only=config.plan_only)]
    mirrors = [] if config.plan_only else build_loggers(config)
    metrics = JsonLines(Path(config.run_dir) / "metrics.jsonl")
    folder, heartbeat = Path(config.run_dir), list[pl.Callback]()
    if not config.plan_only:
        heartbeat = [Heartbeat(folder / "state.json", command), SystemLog(folder / "system.jsonl")]
    every = (config[f"checkpoint_every_n_{unit}"] for unit in ("epochs", "steps", "minutes"))
    saving = Checkpointing(checkpoints, metrics, *every)
    trainer: pl.Trainer = instantiate(config.trainer)(
        strategy=FullySharded() if strategy == "fsdp" else strategy,
        precision=precision,
        logger=[metrics, *mirrors],
        callbacks=[*planning, AverageBatchNormStats(), RunProgress(), *heartbeat, *watching, saving],
        plugins=[*preflight.cluster_environment(), *([SyncBatchNorms()] if config.trainer.sync_batchnorm else [])],
        default_root_dir=config.run_dir,
        log_every_n_steps=1,  # silences a warning: metrics are written by Pretraining.write
        max_epochs=1,  # to Lightning a run is one long epoch, see Pretraining.is_due
        accumulate_grad_batches=config.accumulate,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    preflight.check_process_count(trainer)
    if trainer.world_size > 1 and is_sweep():
        raise UserError("--multirun needs trainer.devices=1: each further process would start the whole sweep again")
    return trainer


def resolve_precision(precision: str, accelerator: str) -> str:
    """``auto`` is bf16-mixed where the hardware multiplies bfloat16 (such GPUs and CPUs), and 32-true elsewhere."""
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    flags = Path("/proc/cpuinfo")  # bf16 was 1.5 to 2 times as fast with avx512_bf16, and ten times slower without both
    native = flags.exists() and any(flag in flags.read_text() for flag in ("amx_bf16", "avx512_bf16"))
    return "bf16-mixed" if native else "32-true"


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


def attach_support(data: DataModule, objective: Objective, processes: int) -> None:
    """Let the data have companions and labelled images as the objective asks; the latter must not be test images.

    Companions that the run finds by itself come later, see :mod:`unlabeled.commands.build.companions`.
    """
    if isinstance(objective, NeedsCompanions) and not objective.companions.mined:
        if objective.companions.neighbours_file is None and not objective.uses_labels:
            raise UserError(
                "objective.companions: images of one class take labels, and this objective uses none: give"
                " neighbours=20, or a neighbours_file"
            )
        data.attach_companions(objective.companions)
    if not isinstance(objective, NeedsSupport):
        return
    data.attach_support(objective.support, processes)
    if data.splits.test is not None and data.labels is not None:
        shared = shared_names(data.labels, data.splits.train, data.splits.test)
        if shared:
            raise UserError(f"objective.support: {len(shared)} labelled images are test images too, e.g. {shared[0]}")


def draw_by_class(data: DataModule, objective: Objective, images_per_class: int | None) -> None:
    """Let batches have so many images of each of their classes, for an objective that trains with labels."""
    if images_per_class is None:
        return
    if not objective.uses_labels:
        raise UserError(
            f"images_per_class={images_per_class}: batches by class need a method with labels, and"
            f" {type(objective).__name__} uses none: give objective=triplet or supcon, or leave images_per_class out"
        )
    data.draw_by_class(images_per_class)


def build_backbone(config: DictConfig, seed: int) -> Backbone:
    """A backbone initialised from ``seed``: the start of a run, and the random baseline of its evaluation."""
    with seeded_init(seed):
        backbone: Backbone = instantiate(config)
    return backbone


def build_objective(
    config: DictConfig,
    start: StartingWeights | None = None,
    hand_over: Callable[[Objective], None] = lambda objective: None,
) -> Objective:
    """The method around its backbone, both initialised from the run's seed, and the backbone from ``start``.

    The backbone is loaded before the method takes it, so that momentum encoders are copies of what was loaded.
    ``hand_over`` gives the method what it needs besides: a teacher.
    """
    backbone = build_backbone(config.backbone, config.seed)
    if start is not None:
        spec: Any = OmegaConf.to_container(config.backbone, resolve=True)
        start.into_backbone(backbone, spec)
    with seeded_init(config.seed):
        objective: Objective = instantiate(config.objective, backbone=backbone)
        hand_over(objective)
    if start is not None:
        start.into_objective(objective)
    return objective


def projector_of(config: DictConfig, checkpoint: Checkpoint) -> nn.Module | None:
    """What an objective calls so, or its teacher's where that is evaluated; None for others and files of others."""
    if not config.get("objective"):
        return None
    objective = load_objective(checkpoint, build_objective(config))
    projector = getattr(objective, "projector", None)
    if objective.product() is not objective.backbone and isinstance(objective, HasTeacher):
        pairs = objective.teacher_student_pairs()
        projector = next((teacher for teacher, student in pairs if student is projector), None)
    return projector if isinstance(projector, nn.Module) else None


def pretext_of(config: DictConfig, start: StartingWeights | None) -> Pretext:
    """What a run starts from, with the head that the run of these weights was trained by."""
    if start is None:
        return Pretext(None, None)
    checkpoint = start.checkpoint
    own = part_of(checkpoint.config, "objective", checkpoint.path)
    parts = OmegaConf.create({"backbone": config.backbone, "objective": own, "seed": config.seed})
    return Pretext(start.origin, projector_of(parts, checkpoint))


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed`` and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_probes(config: DictConfig) -> dict[str, Probe | ImageProbe]:
    """How frozen features are evaluated, by name; none with ``probe=none``, and without one that is null.

    What an experiment sets of a probe that was not chosen has no ``_target_`` and is left alone.
    """
    chosen = config.get("probe") or {}
    return {name: instantiate(probe) for name, probe in chosen.items() if probe is not None and "_target_" in probe}

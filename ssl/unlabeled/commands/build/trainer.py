"""The trainer of a run: its callbacks and loggers, its precision and its strategy."""

import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers.logger import Logger

from unlabeled.commands.config import is_sweep
from unlabeled.core.reading import read_text
from unlabeled.distributed import preflight
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.distributed.sync_batchnorm import AverageBatchNormStats, SyncBatchNorms
from unlabeled.errors import UserError
from unlabeled.health.heartbeat import Heartbeat
from unlabeled.health.system import SystemLog
from unlabeled.training.checkpointing import Checkpointing
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.training.loggers import JsonLines
from unlabeled.training.progress_bar import RunProgress


def build_trainer(config: DictConfig, checkpoints: CheckpointFolder, command: str) -> pl.Trainer:
    """The trainer with its callbacks and loggers; samples, checkpoints and the length of the run are our own.

    Raises:
        UserError: keys of the trainer that cannot work, or not together.
    """
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    _check(config, precision)
    _be_quiet()
    metrics = JsonLines(Path(config.run_dir) / "metrics.jsonl")
    every = (config[f"checkpoint_every_n_{unit}"] for unit in ("epochs", "steps", "minutes"))
    trainer: pl.Trainer = instantiate(config.trainer)(
        strategy=FullySharded() if config.trainer.strategy == "fsdp" else config.trainer.strategy,
        precision=precision,
        logger=[metrics, *([] if config.plan_only else build_loggers(config))],
        callbacks=[*_callbacks(config, command), Checkpointing(checkpoints, metrics, *every)],
        plugins=[*preflight.cluster_environment(), *([SyncBatchNorms()] if config.trainer.sync_batchnorm else [])],
        default_root_dir=config.run_dir,
        log_every_n_steps=1,  # silences a warning: metrics are written by Pretraining.write
        max_epochs=1,  # to Lightning a run is one long epoch, see Pretraining.is_due
        accumulate_grad_batches=config.accumulate,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    _leave_signals_to_us(trainer)
    preflight.check_process_count(trainer)
    if trainer.world_size > 1 and is_sweep():
        raise UserError("--multirun needs trainer.devices=1: each further process would start the whole sweep again")
    return trainer


def _check(config: DictConfig, precision: str) -> None:
    """Raises UserError for keys of the trainer that are our own, or that do not go together."""
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
    if strategy == "fsdp" and precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={precision}: with trainer.strategy=fsdp give 32-true or bf16-mixed")
    if strategy == "fsdp" and str(config.optimizer.optimizer._target_).endswith(".Muon"):
        raise UserError(
            "optimizer=muon: takes whole matrices, which fsdp cuts: give trainer.strategy=ddp, or optimizer=adamw"
        )
    clips = {
        "trainer.gradient_clip_val": config.trainer.gradient_clip_val,
        "objective.clip_norm": config.objective.get("clip_norm"),
    }
    if precision == "16-mixed" and config.optimizer.optimizer.get("fused"):
        for key in (key for key, limit in clips.items() if limit):
            raise UserError(
                f"{key}: with 16-mixed a fused optimizer scales gradients back after they would be "
                "clipped: give optimizer.optimizer.fused=false, or trainer.precision=bf16-mixed"
            )
    if config.plan_only and config.plan is None:
        raise UserError("plan_only=true: plan=null has none; leave one of them out")


def _leave_signals_to_us(trainer: pl.Trainer) -> None:
    """Lightning asks all processes for a SIGTERM before each batch and waits for the GPU; see Checkpointing."""
    loop = trainer.fit_loop.epoch_loop
    if hasattr(loop, "_broadcast_sigterm_tensor"):
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _be_quiet() -> None:
    """Nothing of Lightning's that a reader of the output need not know."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips, no advertisements
    warnings.filterwarnings("ignore", ".*LeafSpec")  # of Lightning 2.6 with torch 2.15; nobody's concern here
    warnings.filterwarnings("ignore", ".*module.* in eval mode at the start")  # those of backbone.freeze mean to be


def _callbacks(config: DictConfig, command: str) -> list[pl.Callback]:
    """What acts between steps, in this order: the plan first, what watches the training last."""
    planning = [] if config.plan is None else [instantiate(config.plan, only=config.plan_only)]
    heartbeat, folder = list[pl.Callback](), Path(config.run_dir)
    if not config.plan_only:
        heartbeat = [Heartbeat(folder / "state.json", command), SystemLog(folder / "system.jsonl")]
    watching = [instantiate(config[name]) for name in ("online_knn", "pictures", "health") if config[name]]
    return [*planning, AverageBatchNormStats(), RunProgress(), *heartbeat, *watching]


def build_loggers(config: DictConfig) -> list[Logger]:
    """What mirrors the metrics, none or several: ``logger=tensorboard``, ``logger=[tensorboard,wandb]``."""
    chosen = config.get("logger") or {}
    for name, logger in chosen.items():
        if not isinstance(logger, DictConfig) or "_target_" not in logger:
            raise UserError(f"logger.{name}: no such logger; give logger=csv, tensorboard or wandb, or [csv,wandb]")
    return [instantiate(logger) for logger in chosen.values()]


def resolve_precision(precision: str, accelerator: str) -> str:
    """``auto`` is bf16-mixed where the hardware multiplies bfloat16 (such GPUs and CPUs), and 32-true elsewhere."""
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    flags = Path("/proc/cpuinfo")  # bf16 was 1.5 to 2 times as fast with avx512_bf16, and ten times slower without both
    native = flags.exists() and any(flag in read_text(flags, "cpu") for flag in ("amx_bf16", "avx512_bf16"))
    return "bf16-mixed" if native else "32-true"

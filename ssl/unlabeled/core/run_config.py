"""Reads, writes and compares the configuration of a run as plain values, without Hydra."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unlabeled.core.parsing import parse_yaml
from unlabeled.core.reading import read_bytes
from unlabeled.core.writing import write_atomic

# Keys that may differ when a run is resumed: they change no number that the run computes.
FREE_KEYS = (
    "backbone.gradient_checkpointing",
    "cache",
    "cache_gib",
    "checkpoint_every_n_epochs",
    "checkpoint_every_n_minutes",
    "checkpoint_every_n_steps",
    "checkpoints_kept",
    "data.index",
    "explore_images",
    "health",
    "log_every_n_steps",
    "logger",
    "max_faults_in_a_row",
    "memory_gib",
    "num_workers",
    "objective.teacher_sha256",
    "objective.teacher_width",
    "online_knn",
    "pictures",
    "plan",
    "plan_only",
    "preflight_seconds",
    "preview",
    "probe",
    "replay",
    "resume",
    "timeout_minutes",
    "trainer",
    "views.compile",  # roundings alone: auto since version 0.2, where false was the default
    "weights_sha256",
)

# Of ``trainer``, which is free as a machine is, these change numbers.
NOT_FREE = ("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.sync_batchnorm")

# Paths of the run and its images may differ too: the files are compared, see unlabeled.training.same_data.
MOVABLE_KEYS = ("data.path", "data.root", "run_dir")

# Keys that runs of version 0.1 do not have, with the values that were in effect: such runs are resumed as they are.
EARLIER_VALUES = {
    "backbone.channels": 3,
    "views.channels": 3,
    "data.channels": 3,
    "data.bits": 8,
    "data.max_pixels": 178_956_970,  # Pillow's own limit
    "data.decode": "pillow",
    "data.holdout": None,
    "data.path_column": None,
    "data.label_column": None,
    "weights_of": "backbone",
    "images_per_class": None,
    "progressive_resizing": None,
    "backbone.drop_path": 0.0,
    "backbone.uniform_drop_path": False,
    "backbone.layer_scale": None,
    "backbone.registers": 0,
    "backbone.class_token": True,
    "backbone.relative_position": False,
    "backbone.padding": "both",
    "objective.projection_norm": True,
    "objective.projection_affine": False,
    "objective.sum": False,
    "objective.two_queues": False,
    "objective.direction_mean": False,
    "objective.support.repeats": False,
    "optimizer.cosine": "half",
    "optimizer.decayed_also": [],
    "optimizer.optimizer.clip": False,
    "optimizer.optimizer.adapt_all": False,
    "optimizer.optimizer.rate_in_momentum": False,
    "optimizer.warmup_start_lr": 0.0,
    "optimizer.final_lr": 0.0,
    "optimizer.final_weight_decay": None,
}


def write_config(resolved: dict[str, Any], run_dir: Path) -> None:
    """Writes ``run_dir/config.yaml``."""
    write_atomic(run_dir / "config.yaml", to_yaml(resolved))


def to_yaml(values: dict[str, Any]) -> str:
    """Returns plain values as YAML text, in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def read_yaml(path: Path) -> Any:
    """Reads a file as plain values. Raises ValueError if it is not YAML, OSError if it cannot be read."""
    try:
        return parse_yaml(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Returns the dotted names of the values that differ between two trees of plain values."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        below = f"{path}." if path else ""
        return [found for key in keys for found in differences(a.get(key), b.get(key), f"{below}{key}")]
    return [] if a == b else [path]

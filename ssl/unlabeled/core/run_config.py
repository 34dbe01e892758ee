"""The configuration of a run as plain values: read, written and compared. No Hydra in here."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unlabeled.core.writing import write_atomic
from unlabeled.core.yaml_text import parse_yaml

# What may differ between the start of a run and its continuation: it changes no number that the run computes.
FREE_KEYS = (
    "backbone.gradient_checkpointing",
    "cache",
    "cache_gib",
    "checkpoint_every_n_epochs",
    "checkpoint_every_n_minutes",
    "checkpoint_every_n_steps",
    "checkpoints_kept",
    "data.index",
    "health",
    "log_every_n_steps",
    "logger",
    "max_faults_in_a_row",
    "memory_gib",
    "num_workers",
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
    "weights_sha256",
)

# Where a run and its images lie may differ too: the images are compared as files, see unlabeled.training.same_data.
MOVABLE_KEYS = ("data.path", "data.root", "run_dir")


def write_config(resolved: dict[str, Any], run_dir: Path) -> None:
    """Write ``run_dir/config.yaml``."""
    write_atomic(run_dir / "config.yaml", to_yaml(resolved))


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as text, in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def read_yaml(path: Path) -> Any:
    """A file as plain values. Raises ValueError where it is no yaml, OSError where it cannot be read."""
    try:
        return parse_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted names of the values that two trees of plain values do not share."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        below = f"{path}." if path else ""
        return [found for key in keys for found in differences(a.get(key), b.get(key), f"{below}{key}")]
    return [] if a == b else [path]

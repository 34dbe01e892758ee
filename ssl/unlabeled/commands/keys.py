"""The keys at the top of the primary yamls: their types, and which of them change no number of a run."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Len, MinLen

from unlabeled.commands.checks.values import Built
from unlabeled.core.ranges import (
    AtLeastTwo,
    Between,
    Count,
    Distinct,
    FilePath,
    Gib,
    Increasing,
    NoneOrMore,
    Pixels,
    Positive,
    Processes,
    Seed,
)

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
BatchSize = Annotated[int, Interval(ge=1, le=2**24)]
Map = Literal["spectral_residual", "frequency_tuned", "boundary_distance", "global_contrast", "minimum_barrier"]
Minutes = Annotated[float, Interval(gt=0, le=1e7)]
Runs = Annotated[list[FilePath], MinLen(2)]
Sha256 = Annotated[str, Len(64, 64)]
Side = Annotated[list[FilePath], MinLen(1)] | FilePath

# Keys of the primary yamls that are not groups. What stands below a _target_ has its constructor's types.
TYPES: dict[str, Any] = {
    "name": str,
    "run_dir": FilePath,
    "seed": Seed,
    "weights": FilePath | None,
    "weights_of": Literal["backbone", "all"],
    "weights_sha256": Sha256 | None,
    "batch_size": BatchSize,
    "accumulate": Count,
    "images_per_class": Count | None,
    "compile": Literal["default", "reduce-overhead", "max-autotune", "graph"] | None,
    "max_epochs": Count | None,
    "max_steps": Count | None,
    "num_workers": Processes,
    "memory_gib": Gib,
    "checkpoint_every_n_epochs": Count,
    "checkpoint_every_n_steps": Count | None,
    "checkpoint_every_n_minutes": Minutes | None,
    "checkpoints_kept": Count,
    "resume": Literal["same", "override"],
    "log_every_n_steps": Count,
    "max_faults_in_a_row": Count,
    "preflight_seconds": Annotated[float, Interval(gt=0, le=1e6)],
    "timeout_minutes": Minutes,
    "plan_only": bool,
    "preview": Count | None,
    "replay": FilePath | None,
    "plan": Built | None,
    "online_knn": Built | None,
    "pictures": Built | None,
    "run": FilePath | None,
    "checkpoint": FilePath | None,
    "report_dir": FilePath | None,
    "accelerator": Accelerator,
    "cache": FilePath | None,
    "cache_gib": Gib,
    "precision": Literal["32-true", "bf16-mixed", "16-mixed", "auto"],
    "self_test": bool,
    "compare": Annotated[list[Side], Len(2, 2)] | None,
    "ensemble": Runs | None,
    "runs": list[FilePath],
    "format": Literal["markdown", "csv", "latex"] | None,
    "baselines": bool,
    "out": FilePath | None,
    "to": Literal["timm", "torchvision", "safetensors", "huggingface", "onnx"],
    "first": FilePath | dict[str, Any],
    "second": FilePath | dict[str, Any],
    "data_images": NoneOrMore,
    "maps": Annotated[list[Map], MinLen(1), Distinct()],
    "work_size": Annotated[int, Interval(ge=8, le=65536)],
    "centre_sigma": Annotated[float, Interval(gt=0, le=1000)] | None,
    "mask_size": Pixels | None,
    "threshold": Between,
    "refine": bool,
    "refine_images": Count,
    "refine_epochs": Count,
    "device": Literal["auto", "cpu", "cuda"],
    "near_distance": Annotated[int, Interval(ge=0, le=11)] | None,
    "limit": Count | None,
    "images_per_second": Positive,
    "split": Literal["train", "test"],
    "features": Literal["last", "tokens", "last4", "cls", "patches"],
    "pooling": Literal["mean", "max"] | None,
    "normalize": bool,
    "images": Annotated[int, Ge(4)],
    "lidar_images": AtLeastTwo,
    "lidar_views": AtLeastTwo,
    "encoding": Literal["jpeg", "png", "raw"],
    "quality": Annotated[int, Interval(ge=1, le=100)],
    "shard_images": Count,
    "image_size": Pixels | None,
    "check": bool,
    "head": str | None,
    "top": Count,
    "risk": Between | None,
    "images_per_pass": Count | None,
    "alpha_window": Annotated[tuple[Count, Count], Increasing()],
}

"""Backbone weights from a file: every tensor finds its place, or nothing is loaded and the error says why."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Objective

# Where checkpoints keep a backbone, the most specific first; "" is a bare state dict (torchvision, timm).
PREFIXES = ("objective.backbone.", "backbone.", "")
CLASSIFIER = ("fc.", "head.", "classifier.")  # of a bare state dict: not part of a backbone


@dataclass
class Checkpoint:
    """What a checkpoint file says of itself."""

    path: Path
    sha256: str
    state_dict: Mapping[str, Tensor]
    config: dict[str, Any] | None  # resolved configuration of the run, in our own checkpoints
    progress: dict[str, int]  # step, total_steps, steps_per_epoch, seed; empty in files from elsewhere


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of tensors and plain values; never runs code from it (``weights_only=True``).

    Raises:
        UserError: no such file, not a checkpoint, or a pickle that would have to run code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint={path}: no such file")
    try:
        mmap = zipfile.is_zipfile(path)  # before torch 1.6 checkpoints were none, official ones among them
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise UserError(f"checkpoint={path}: cannot be read as tensors and plain values ({_reason(error)})") from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not any(isinstance(value, Tensor) for value in state_dict.values()):
        raise UserError(f"checkpoint={path}: holds no state_dict")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(path, sha256, state_dict, content.get("config"), content.get("progress", {}))


def _reason(error: Exception) -> str:
    """What torch found wrong, without its paragraph on how to load the file anyway."""
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    return text.strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


def load_backbone(source: Path | Checkpoint, backbone: Backbone) -> Backbone:
    """Load every tensor of ``backbone`` from a checkpoint of this project, or from a bare state dict.

    Args:
        source: a file, or what :func:`read_checkpoint` made of it.
        backbone: of the same architecture; changed in place and returned.

    Raises:
        UserError: a tensor is missing, left over or of another shape; lists every one. Nothing is loaded then.
    """
    checkpoint = read_checkpoint(source) if isinstance(source, Path) else source
    _load_whole(backbone, _backbone_part(checkpoint.state_dict), f"{checkpoint.path} does not fit the backbone")
    return backbone


def load_objective(checkpoint: Checkpoint, objective: Objective) -> Objective:
    """Load every tensor of ``objective``, backbone and heads, from a checkpoint of this project.

    Raises:
        UserError: as :func:`load_backbone`.
    """
    prefix = "objective."
    found = {key.removeprefix(prefix): v for key, v in checkpoint.state_dict.items() if key.startswith(prefix)}
    _load_whole(objective, found, f"{checkpoint.path} does not fit the objective")
    return objective


def _load_whole(module: nn.Module, found: Mapping[str, Tensor], problem: str) -> None:
    wanted = module.state_dict()
    problems = [f"missing {key}" for key in wanted if key not in found]
    problems += [f"unknown {key}" for key in found if key not in wanted]
    problems += [
        f"{key} has shape {list(found[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    if problems:
        raise UserError(f"checkpoint={problem}: {'; '.join(problems)}")
    module.load_state_dict(found)


def _backbone_part(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        part = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if part:
            ignored = CLASSIFIER if prefix == "" else ()
            return {key: value for key, value in part.items() if not key.startswith(ignored)}
    return {}

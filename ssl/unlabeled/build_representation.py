"""From a composed configuration to what :mod:`unlabeled.representation` looks at."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from unlabeled.build import build_backbone, build_data, build_objective
from unlabeled.build_evaluation import fill_in
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.representation.analysis import Subject
from unlabeled.representation.comparison import Side
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone, load_objective, read_checkpoint


def build_subject(config: DictConfig, checkpoint: Checkpoint) -> tuple[Subject, dict[str, Any]]:
    """A checkpoint with all its weights and its images, and the configuration that they were built from."""
    config = fill_in(config, checkpoint)
    device = _device(config)
    backbone = load_backbone(checkpoint, build_backbone(config.backbone, config.seed))
    views, data = _views(config.views), _data(config)
    source = split_of(data, config.split)
    views.require_masks(source)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return Subject(backbone, _projector(config, checkpoint), views, data, source, device), plain


def build_sides(config: DictConfig) -> tuple[Side, Side, DataModule, Source, torch.device]:
    """Both networks of a comparison, and the images that both see."""
    given = [config.first, config.second]
    checkpoints = [None if path is None else read_checkpoint(checkpoint_of(path)) for path in given]
    sides = [_side(config, which, each) for which, each in zip(("first", "second"), checkpoints, strict=True)]
    own = next((each.config["data"] for each in checkpoints if each is not None and each.config), None)
    config = OmegaConf.create({**config, "data": config.get("data") or own})
    if config["data"] is None:
        raise UserError("data: neither network says what it was made with: give data=…")
    data = _data(config)
    return sides[0], sides[1], data, split_of(data, config.split), _device(config)


def checkpoint_of(given: str) -> Path:
    """The file that is meant by a run's folder or by a file."""
    path = Path(given).expanduser()
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def split_of(data: DataModule, split: str) -> Source:
    """Raises UserError for a test split that is not there."""
    found = data.splits.train if split == "train" else data.splits.test
    if found is None:
        raise UserError(f"split={split}: this data set has no test split; give split=train")
    return found


def _side(config: DictConfig, which: str, checkpoint: Checkpoint | None) -> Side:
    asked = {name: config.get(f"{which}_{name}") for name in ("backbone", "views")}
    own = OmegaConf.create({**asked, "seed": config.seed, "data": None})
    if checkpoint is not None:
        own = fill_in(own, checkpoint, needs=())
    for name in ("backbone", "views"):
        if own[name] is None:
            raise UserError(f"{which}={config[which]} does not say what it was made with: give {name}@{which}_{name}=…")
    backbone = build_backbone(own["backbone"], own["seed"])
    backbone = backbone if checkpoint is None else load_backbone(checkpoint, backbone)
    return Side(_name(config[which], own["backbone"]), backbone, _views(own["views"]), checkpoint, own["seed"])


def _name(given: str | None, backbone: DictConfig) -> str:
    """How a network is called in the picture."""
    kind = str(backbone.get("model") or str(backbone["_target_"]).rpartition(".")[2])
    kind += f"-{backbone['depth']}" if kind == "ResNet" else ""
    return f"{kind}, {'random start' if given is None else Path(given).name}"


def _projector(config: DictConfig, checkpoint: Checkpoint) -> nn.Module | None:
    """What an objective calls so; None for those that have none, and for files from elsewhere."""
    if not config.get("objective"):
        return None
    projector = getattr(load_objective(checkpoint, build_objective(config)), "projector", None)
    return projector if isinstance(projector, nn.Module) else None


def _views(config: DictConfig) -> Views:
    views: Views = instantiate(config)
    views.compiles = False  # nothing here is long enough for it to pay
    return views


def _data(config: DictConfig) -> DataModule:
    """Decodes what is asked for and keeps nothing."""
    return build_data(OmegaConf.create({**config, "memory_gib": 0.0}))


def _device(config: DictConfig) -> torch.device:
    return torch.device("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")

"""From a composed configuration to what :mod:`unlabeled.representation` looks at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.arguments.sides import compose_side, files_of
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.network import build_backbone, projector_of
from unlabeled.commands.build.run import build_data
from unlabeled.commands.from_file import data_of
from unlabeled.core.file_config import check_opened
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.representation.analysis import AnalysisSubject
from unlabeled.representation.comparison import ComparedNetwork
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, checkpoint_path, folder_of, load_backbone, read_checkpoint


def build_analysis_subject(config: DictConfig, checkpoint: Checkpoint) -> tuple[AnalysisSubject, dict[str, Any]]:
    """A checkpoint with all its weights and its images, and the configuration that they were built from."""
    own_views = None if config.get("views") else (checkpoint.config or {}).get("views")
    config = complete_config(config, checkpoint)
    check_opened("views", own_views or {}, checkpoint.path, ("masks",))
    device = _device(config)
    backbone = load_backbone(checkpoint, build_backbone(config.backbone, config.seed))
    views, data = _views(config.views), _data(config)
    source = choose_split(data, config.split)
    views.require_masks(source)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return AnalysisSubject(backbone, projector_of(config, checkpoint), views, data, source, device), plain


def build_compared_networks(
    config: DictConfig,
) -> tuple[ComparedNetwork, ComparedNetwork, DataModule, Source, torch.device]:
    """Both networks of a comparison, and the images that both see."""
    given: Any = OmegaConf.to_container(config)
    sides = [_side(which, given[which]) for which in ("first", "second")]
    config = OmegaConf.create({**config, "data": _common_data(config.get("data"), sides)})
    if config["data"] is None:
        raise UserError("data: neither network says what it was made with: give data=…")
    data = _data(config)
    return sides[0], sides[1], data, choose_split(data, config.split), _device(config)


def _common_data(given: DictConfig | None, sides: Sequence[ComparedNetwork]) -> DictConfig | None:
    """What both networks see: what is given, else the images of the first that names some."""
    for side in sides:
        if side.checkpoint and side.checkpoint.config:
            found = data_of(given, side.checkpoint.config, side.checkpoint.path)
            if found is not None:
                return found
    return given


def choose_split(data: DataModule, split: str) -> Source:
    """Raises UserError for a test split that is not there."""
    found = data.splits.train if split == "train" else data.splits.test
    if found is None:
        raise UserError(f"split={split}: this data set has no test split; give split=train")
    return found


def _side(which: str, given: Any) -> ComparedNetwork:
    """A network by its run, its file, or the overrides of ``conf/representation_side.yaml``."""
    files, config = files_of(which, given), compose_side(which, given)
    path = checkpoint_path(**files) if any(files.values()) else None
    checkpoint = None if path is None else read_checkpoint(path)
    if checkpoint is not None:
        config = complete_config(config, checkpoint, needs=())
    for key in ("views", "backbone"):
        if config.get(key) is None:
            raise UserError(
                f"{which}: {path or 'a network without a file'} does not say its {key}: give {key}:… in braces"
            )
    backbone = build_backbone(config.backbone, config.seed)
    backbone = backbone if checkpoint is None else load_backbone(checkpoint, backbone)
    return ComparedNetwork(_name(path, config.backbone), backbone, _views(config.views), checkpoint, config.seed)


def _name(path: Path | None, backbone: DictConfig) -> str:
    """How a network is called in the picture."""
    kind = str(backbone.get("model") or str(backbone["_target_"]).rpartition(".")[2])
    kind += f"-{backbone['depth']}" if kind == "ResNet" else ""
    if path is None:
        return f"{kind}, random start"
    return f"{kind}, {folder_of(path).name if path.parent.name == 'checkpoints' else path.name}"


def _views(config: DictConfig) -> Views:
    views: Views = instantiate(config)
    views.compiles = False  # nothing here is long enough for it to pay
    return views


def _data(config: DictConfig) -> DataModule:
    """Decodes what is asked for and keeps nothing."""
    return build_data(OmegaConf.create({**config, "memory_gib": 0.0}))


def _device(config: DictConfig) -> torch.device:
    return torch.device("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")

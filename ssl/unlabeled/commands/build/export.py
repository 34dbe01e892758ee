"""From a composed configuration to what :mod:`unlabeled.commands.export` needs."""

import copy
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.run import build_backbone, build_splits
from unlabeled.data.source import Splits
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.weights import Checkpoint, load_backbone


@dataclass(frozen=True)
class ExportInputs:
    """What an export knows of a checkpoint."""

    backbone: Backbone  # with its weights
    values: dict[str, Any]  # what it was built from, as plain values
    views: dict[str, Any]  # likewise
    splits: Splits | None  # the run's data where it is there
    why_no_data: str  # why not


def build_export_inputs(config: DictConfig, checkpoint: Checkpoint) -> ExportInputs:
    """The backbone of a checkpoint, from the configuration of an export."""
    filled = complete_config(config, checkpoint, needs=("views", "backbone"))
    plain: Any = OmegaConf.to_container(filled, resolve=True)
    backbone = load_backbone(checkpoint, build_backbone(filled.backbone, filled.seed))
    given = bool(config.get("data"))
    splits, why_not = (None, "data_images=0") if config.data_images == 0 else find_splits(filled, given)
    return ExportInputs(backbone, plain["backbone"], plain["views"], splits, why_not)


def find_splits(config: DictConfig, given: bool = False) -> tuple[Splits | None, str]:
    """The data set if it is there, else why not. Nothing is downloaded for this.

    Args:
        config: with its ``data``.
        given: whether the command named them: then it is a mistake if they are not there.
    """
    if config.data is None:
        return None, "no data=… is known"
    config = copy.deepcopy(config)
    if "download" in config.data:
        config.data.download = False
    try:
        return build_splits(config), ""
    except InstantiationException as error:  # what a mistake in the code raises goes on
        if given or not isinstance(error.__cause__, UserError | OSError):
            raise
        return None, " ".join(str(error.__cause__).split())

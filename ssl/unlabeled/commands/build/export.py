"""From a composed configuration to what :mod:`unlabeled.commands.export` needs."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from unlabeled.commands.build.classify import read_kept
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.run import build_splits
from unlabeled.data.source import Splits
from unlabeled.errors import UserError
from unlabeled.evaluation.heads.predictor import network_of
from unlabeled.evaluation.recipes.finetune import Classifier
from unlabeled.objective import Backbone
from unlabeled.weights import Checkpoint, load_backbone
from unlabeled.weights.classifier import LinearClassifier


@dataclass(frozen=True)
class ExportInputs:
    """What an export knows of a checkpoint."""

    backbone: Backbone  # with its weights
    values: dict[str, Any]  # what it was built from, as plain values
    views: dict[str, Any]  # likewise
    splits: Splits | None  # the run's data where it is there
    why_no_data: str  # why not
    classifier: LinearClassifier | None = None  # behind the backbone, where a head is asked for


def build_export_inputs(config: DictConfig, checkpoint: Checkpoint) -> ExportInputs:
    """The backbone of a checkpoint, from the configuration of an export."""
    filled = complete_config(config, checkpoint, needs=("views", "backbone"))
    plain: Any = OmegaConf.to_container(filled, resolve=True)
    backbone = load_backbone(checkpoint, build_backbone(filled.backbone, filled.seed))
    backbone, classifier = (backbone, None) if config.head is None else with_head(config, checkpoint, backbone)
    given = bool(config.get("data"))
    splits, why_not = (None, "data_images=0") if config.data_images == 0 else find_splits(filled, given)
    return ExportInputs(backbone, plain["backbone"], plain["views"], splits, why_not, classifier)


def with_head(config: DictConfig, checkpoint: Checkpoint, backbone: Backbone) -> tuple[Backbone, LinearClassifier]:
    """The backbone, or what was fine-tuned of it, and the classifier of a kept head.

    Raises:
        UserError: the head is no linear function of the network's own features.
    """
    kept = read_kept(config, checkpoint.path, checkpoint)
    head, names = kept.head, [kept.context.classes[column] for column in kept.head.tensors.get("columns", [])]
    if head.kind == "knn" or head.features != "last" or head.settings.get("pooling", "network") != "network":
        raise UserError(
            f"head={config.head}: {kept.protocol} is no linear classifier of the network's output, which alone is "
            "exported; give head=linear, or fine-tune"
        )
    temperature = kept.calibration.temperature
    if head.kind == "linear":
        weight, mean, scale = (head.tensors[name] for name in ("weight", "mean", "scale"))
        return backbone, LinearClassifier.folded(weight, mean, scale, temperature, names, kept.protocol)
    tuned = network_of(kept, backbone)
    assert isinstance(tuned, Classifier)
    layer = tuned.top[1]
    assert isinstance(layer, nn.Linear)
    whole = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()[head.tensors["columns"]]
    nothing = torch.zeros(whole.shape[1] - 1)
    return tuned.network, LinearClassifier.folded(whole, nothing, nothing + 1, temperature, names, kept.protocol)


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

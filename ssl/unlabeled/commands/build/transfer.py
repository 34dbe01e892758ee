"""From a composed configuration to the networks and the data sets of :mod:`unlabeled.downstream`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.arguments.data_path import source_of_path
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.trainer import resolve_precision
from unlabeled.commands.config import conf_folder
from unlabeled.core.run_config import read_yaml
from unlabeled.data.module import DataModule
from unlabeled.data.source import Splits
from unlabeled.data.sources.published_sets import SETS, TOP1, VALIDATION
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import TensorCache, cache_folder
from unlabeled.evaluation.extractor import Extractor
from unlabeled.evaluation.features import Features
from unlabeled.objective import Backbone
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone
from unlabeled.weights.starting.named import named_as_given

RANDOM = "random init"  # the name of a network with random weights


@dataclass
class Network:
    """A frozen network with the transform of its images."""

    name: str
    backbone: Backbone
    views: Views


@dataclass
class DataSet:
    """A data set with the metric that papers report for it; its images are decoded once for all networks."""

    name: str
    metric: str
    images: DataModule
    validation: DataModule | None  # with the validation split as its test split


def build_networks(config: DictConfig, checkpoint: Checkpoint, name: str, random: bool) -> list[Network]:
    """Builds the network of a checkpoint, and beside it the same one with random weights if that is asked for.

    Raises UserError where the checkpoint does not say what it is, or does not fit.
    """
    with named_as_given(checkpoint, config.weights):
        whole = OmegaConf.create({**config, "probe": {}, "data": None})
        filled = complete_config(whole, checkpoint, ("views", "backbone"))
        network = build_backbone(filled.backbone, filled.seed)
        backbone = load_backbone(checkpoint, network, any_size=config.weights is not None)
    views: Views = instantiate(filled.views)
    views.compiles = False
    backbone.check_size(views.size)
    found = [Network(name, backbone, views)]
    return [*found, Network(RANDOM, build_backbone(filled.backbone, config.seed), views)] if random else found


def build_set(config: DictConfig, given: str) -> DataSet:
    """Opens a data set: one of torchvision's by its name, a choice of ``conf/data``, or a place.

    Raises UserError where it cannot be had, or has no labels or no test split.
    """
    splits = _opened(_keys(config, given))
    test = splits.test
    if test is None or not bool((test.labels >= 0).any()) or not bool((splits.train.labels >= 0).any()):
        raise UserError(f"{given}: there are no labelled train and test images in it")
    data = DataModule(splits, config.batch_size, config.num_workers, config.memory_gib, config.seed)
    validation = splits.others.get(VALIDATION)
    metric = SETS[given].metric if given in SETS else TOP1
    name = Path(given).name if os.path.exists(given) else given
    return DataSet(name, metric, data, None if validation is None else data.with_test(validation))


def _opened(values: dict[str, Any]) -> Splits:
    try:
        splits: Splits = instantiate(OmegaConf.create(values))
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # Hydra puts its own error around it
            raise error.__cause__ from error
        raise
    return splits


def _keys(config: DictConfig, given: str) -> dict[str, Any]:
    folder = conf_folder() / "data"
    values: dict[str, Any]
    if (folder / f"{given}.yaml").is_file():
        values = read_yaml(folder / f"{given}.yaml")
        missing = [key for key, value in values.items() if value == "???"]
        if missing:
            raise UserError(f"{given}: a kind of source, which needs {missing[0]}; give the place itself")
        return values | {key: config[key] for key in ("root", "download") if key in values}
    if given in SETS:
        values = read_yaml(folder / "torchvision.yaml")
        return values | {"name": given, **{key: config[key] for key in ("root", "download", "image_size")}}
    place = Path(given).expanduser()
    if not place.exists():
        raise UserError(
            f"{given}: no such file or folder, and no data set that is known by this name; names: {', '.join(SETS)}"
        )
    values = read_yaml(folder / f"{source_of_path(place)}.yaml")
    return values | {"path": str(place), "image_size": config.image_size}


def build_extractor(config: DictConfig, data: DataModule, views: Views) -> Extractor:
    """Prepares passes over a data set under a network's transform."""
    views.require_channels(data.splits.train)
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    precision = resolve_precision(config.precision, config.accelerator)
    cache = TensorCache(cache_folder(config.cache), config.cache_gib)
    return Extractor(data, views, torch.device("cuda" if gpu else "cpu"), precision, config.batch_size, cache)


def features_of(config: DictConfig, network: Network, given: DataSet) -> tuple[Features, Features | None, Features]:
    """Returns features of the labelled images of train, validation (None where there is none) and test."""
    extractor = build_extractor(config, given.images, network.views)
    train, test = (extractor(network.backbone, split) for split in ("train", "test"))
    if given.validation is None:
        return train, None, test
    return train, build_extractor(config, given.validation, network.views)(network.backbone, "test"), test

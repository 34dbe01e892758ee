"""Published numbers of transfer, segmentation and detection beside one's own, with what differs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlabeled.core.run_config import read_yaml
from unlabeled.evaluation.comparison.references import backbone_name, objective_names, recipe_differs

PUBLISHED = Path(__file__).with_name("published.yaml")
# Data of segmentation and detection recognised by their counts: train images, test images, classes.
COUNTS = {
    (20_210, 2_000, 150): "ade20k",
    (1_464, 1_449, 21): "voc2012",
    (10_582, 1_449, 21): "voc2012",
    (118_287, 5_000, 80): "coco2017",
    (117_266, 5_000, 80): "coco2017",  # those with objects
    (16_551, 4_952, 20): "voc0712",
}


@dataclass(frozen=True)
class Published:
    """A number of a publication, per cent, and how ours differs from it."""

    value: float
    source: str
    differs: list[str]


@dataclass(frozen=True)
class Asked:
    """What is asked about: a network on a task."""

    task: str  # transfer, segmentation, detection
    data: str
    protocol: str
    config: Mapping[str, Any]  # of the training run; {} if unknown
    weights: str  # path of the checkpoint, or name of a library's weights
    settings: Mapping[str, Any]  # of the task
    epochs: float | None = None  # trained


def published_for(asked: Asked) -> list[Published]:
    """Returns the published numbers of the same method, backbone, data set and kind of protocol."""
    found = []
    for group in read_yaml(PUBLISHED):
        if group["task"] == asked.task and asked.protocol.startswith(group["protocol"]):
            found += [Published(value, group["source"], _differs(group, asked)) for value in _values(group, asked)]
    return found


def _values(group: Mapping[str, Any], asked: Asked) -> Iterator[float]:
    named = [values for name, values in group.get("weights", {}).items() if name in asked.weights]
    if group.get("backbone") == backbone_name(asked.config):
        named += [group["values"][name] for name in objective_names(asked.config) if name in group.get("values", {})]
    yield from (values[asked.data] for values in named if asked.data in values)


def _differs(group: Mapping[str, Any], asked: Asked) -> list[str]:
    """Lists how the number here was made in another way than the published one, as far as the source says."""
    found = [group["note"]] if "note" in group else []
    settings = {key: (asked.settings.get(key), theirs) for key, theirs in group.get("settings", {}).items()}
    found += [f"{key} {ours} instead of {theirs}" for key, (ours, theirs) in settings.items() if ours != theirs]
    if "pretrained" in group:
        found += recipe_differs(group["pretrained"], asked.config, asked.epochs)
        found.append("published after pretraining on ImageNet")
    return found

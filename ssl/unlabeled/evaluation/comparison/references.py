"""Finds published numbers for a run's objective, backbone and data, and lists how the run differs from them."""

import re
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

from unlabeled.core.run_config import read_yaml
from unlabeled.evaluation.comparison.evaluated_run import config_value
from unlabeled.evaluation.evaluate_probes import Row

PUBLISHED = Path(__file__).with_name("references.yaml")
# Data sets with published numbers, recognised by their counts: train images, test images, classes.
COUNTS = {
    "imagenet": (1_281_167, 50_000, 1000),
    "imagenet100": (126_689, 5000, 100),
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
}
SIZES = {"imagenet": 224, "imagenet100": 224, "cifar10": 32, "cifar100": 32}  # image size in evaluation, pixels
VITS: dict[Any, str] = {(384, 12): "vit_small", (768, 12): "vit_base", (1024, 24): "vit_large", (1280, 32): "vit_huge"}
EPOCH = {
    "best": "the published number is the best epoch's on the test set; ours is the last's",
    "unknown": "the source does not say of which epoch it is; ours is the last",
}
OF_CROPS = "unlabeled.views.operations.RandomResizedCrop"


def references_for(config: Mapping[str, Any], rows: Sequence[Row], epochs: float | None = None) -> list[dict[str, Any]]:
    """Returns the published numbers for a run, one per source and protocol: those of the nearest number of epochs.

    Args:
        config: resolved configuration of the training run; {} if unknown, which gives an empty list.
        rows: of its report.
        epochs: number of trained epochs; None: ``max_epochs`` of the configuration.

    Returns:
        Dicts with name, protocol (as published), published, ours, ours_protocol and difference (None where we have no
        number of that kind), differs (sentences; empty only if no difference is known), source.
    """
    objectives, backbone = objective_names(config), backbone_name(config)
    data, doubt = data_name(config, rows)
    trained = epochs or config.get("max_epochs")
    found = []
    for group in read_yaml(PUBLISHED):
        if (group["backbone"], group["data"]) != (backbone, data):
            continue
        values = [{**group, **value} for value in group["values"] if value["objective"] in objectives]
        if values:
            nearest = min(values, key=lambda value: _distance(value, config, trained))
            found.append(_compare_with_reference(nearest, config, rows, trained, doubt))
    return found


def objective_names(config: Mapping[str, Any]) -> list[str]:
    """Returns the objective's names in references.yaml, with and without its version."""
    objective = config.get("objective") or {}
    file, _, kind = str(objective.get("_target_", "")).removeprefix("unlabeled.objectives.").partition(".")
    layers = objective.get("projection_layers")
    if kind == "SimCLR":
        return ["simclr", "simclr_v2" if layers == 3 else "simclr_v1"]
    if kind == "MoCo":
        return ["moco", "moco_v1" if layers == 1 else "moco_v2"]
    if kind == "ReLIC":
        return ["relicv2"] if objective.get("predictor") else []
    if kind == "Triplet":  # in the file of SupCon
        return ["triplet"]
    return ["moco_v3" if kind == "MoCoV3" else file] if kind else []


def backbone_name(config: Mapping[str, Any]) -> str | None:
    """Returns ``resnet50/imagenet`` (stem) or ``vit_base/16`` (patches); None if references.yaml has no such name."""
    backbone = config.get("backbone") or {}
    kind = str(backbone.get("_target_", "")).rpartition(".")[2]
    if kind == "ResNet" and backbone.get("width") == 1:
        return f"resnet{backbone.get('depth')}/{backbone.get('stem')}"
    if kind == "ViT":
        name = VITS.get((backbone.get("width"), backbone.get("depth")))
        return name and f"{name}/{backbone.get('patch_size')}"
    model = str(backbone.get("model", ""))
    return f"{model}/imagenet" if re.fullmatch(r"resnet\d+", model) else None


def data_name(config: Mapping[str, Any], rows: Sequence[Row]) -> tuple[str | None, list[str]]:
    """Returns the data set's name and doubts about it: files are recognised by their counts alone."""
    target = str((config.get("data") or {}).get("_target_", "")).rpartition(".")[2]
    if target in COUNTS:
        return target, []
    measured = [row for row in rows if row.features == "pretrained"]
    classes = next((row.chosen.get("classes") for row in rows if row.protocol == "chance/uniform"), None)
    for name, (train, test, number) in COUNTS.items():
        same = measured and (measured[0].n_test, classes) == (test, number)
        if same and abs(measured[0].n_train - train) <= train / 1000:  # a few files may be damaged
            return name, [f"the data are taken for {name} by their counts alone ({measured[0].n_train:,} train images)"]
    return None, []


def _distance(value: Mapping[str, Any], config: Mapping[str, Any], epochs: float | None) -> tuple[float, int]:
    """Returns the difference in epochs first, then the number of other differences."""
    far = abs(log(value["epochs"] / epochs)) if value.get("epochs") and epochs else 0.0
    return far, len(recipe_differs(value, config, epochs))


def _compare_with_reference(
    value: Mapping[str, Any], config: Mapping[str, Any], rows: Sequence[Row], epochs: float | None, doubt: list[str]
) -> dict[str, Any]:
    protocol = value["protocol"]
    row = _ours(value, rows)
    differs = recipe_differs(value, config, epochs) + doubt + _protocol_differs(protocol, row)
    settings = [f"{key} = {protocol[key]}" for key in ("k", "T") if key in protocol]
    differs += [value["note"]] if "note" in value else []
    return {
        "name": f"{value['objective']}, {value['backbone']}, {value['data']}",
        "protocol": ", ".join([protocol["how"], *settings]),
        "published": value["top1"],
        "ours": None if row is None else row.top1,
        "ours_protocol": None if row is None else row.protocol,
        "difference": None if row is None else row.top1 - value["top1"],
        "differs": differs,
        "source": value["source"],
    }


def recipe_differs(value: Mapping[str, Any], config: Mapping[str, Any], epochs: float | None) -> list[str]:
    """Lists how the run differs from the published one, in the settings that the source gives."""
    crops, size = describe_crops(config), config_value(config, "views.size")
    settings = [
        ("epochs", epochs and round(epochs, 2), value.get("epochs")),
        ("batch size", config.get("batch_size"), value.get("batch")),
        ("crops", crops, value.get("crops", crops)),
        ("pixels", size, SIZES[value["data"]]),
        *((key, config_value(config, key), published) for key, published in value.get("recipe", {}).items()),
    ]
    unknown = [f"the published number of {name} is not known" for name, _, theirs in settings if theirs is None]
    begun = [f"started from weights={config['weights']}, not from random ones"] if config.get("weights") else []
    given = [f"{name} {ours} instead of {theirs}" for name, ours, theirs in settings if theirs not in (None, ours)]
    return begun + given + unknown


def describe_crops(config: Mapping[str, Any]) -> str | None:
    """Describes how many crops of which size training makes of an image: ``2x224+6x96``."""
    counts: dict[int, int] = {}
    for group in (config.get("views") or {}).get("groups") or []:
        size = next((each["size"] for each in group["operations"] if each.get("_target_") == OF_CROPS), None)
        if size is None:
            return None
        counts[size] = counts.get(size, 0) + group["count"]
    return "+".join(f"{count}x{size}" for size, count in sorted(counts.items(), reverse=True)) or None


def _ours(value: Mapping[str, Any], rows: Sequence[Row]) -> Row | None:
    """Returns the row of the same kind whose protocol is nearest to the published one."""
    kind = [row for row in rows if row.features == "pretrained" and _same_kind(value, row.protocol)]
    return min(kind, key=lambda row: _rank(value["protocol"], row.protocol), default=None)


def _same_kind(value: Mapping[str, Any], ours: str) -> bool:
    family = value["protocol"]["family"]
    if family == "linear":  # protocols on a part of the labels have longer names
        return re.fullmatch(r"linear/([^/]+(/features=[^/]+)?|[^/]+-online/.*)", ours) is not None
    if family == "paws_nn":
        labels = re.match(r"paws_nn/[^/]+/(\d+) labels/", ours)
        return labels is not None and abs(int(labels[1]) / value["labels"] - 1) < 0.02
    if family == "finetune":
        return ours.startswith("finetune/") and f"/labels={value['labels']}/" in f"{ours}/"
    return ours.startswith(f"{family}/")


def _rank(published: Mapping[str, Any], ours: str) -> tuple[bool, bool, float]:
    """Ranks a row; smaller is nearer: the same protocol, then one with augmentation, then the nearest k."""
    k = _number("k", ours)
    return not _is_same(published, ours), "-online/" not in ours, abs(log(k / published["k"])) if k else 0.0


def _is_same(published: Mapping[str, Any], ours: str) -> bool:
    beginning = published.get("same_as")
    return beginning is not None and (ours == beginning or (beginning[-1] == "/" and ours.startswith(beginning)))


def _protocol_differs(published: Mapping[str, Any], row: Row | None) -> list[str]:
    if row is None:
        return [f"not measured here: no probe of the kind {published['family']}"]
    same = _is_same(published, row.protocol)
    notes = row.notes if same else [f"ours is {row.protocol}{_in_words(row.protocol)}"]
    return [*notes, EPOCH[published["epoch"]]] if published["epoch"] in EPOCH else list(notes)


def _in_words(protocol: str) -> str:
    if protocol.startswith("linear/cached-"):
        return ": features computed once, without augmentation"
    return ""


def _number(name: str, protocol: str) -> float | None:
    found = re.search(rf"/{name}=([\d.]+)", protocol)
    return float(found[1]) if found else None

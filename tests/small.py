"""Configurations of ``conf/`` made small enough for tests."""

import copy
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.teacher import TeacherLoader
from unlabeled.data.companions import NeedsCompanions
from unlabeled.data.support import NeedsSupport
from unlabeled.objective import Batch, Objective, Support

CONF = Path(__file__).parents[1] / "conf"


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    """A copy of what is composed once: Hydra takes a tenth of a second for it."""
    return copy.deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["name=x", *overrides])


@cache
def chosen(experiment: str) -> dict[str, str]:
    """Group → choice of an experiment's defaults list."""
    content: Any = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    entries = content.get("defaults", [])
    return {str(group).removeprefix("override /"): str(name) for entry in entries for group, name in entry.items()}


def missing_keys(config: DictConfig) -> set[str]:
    """Keys without a value. OmegaConf's function of this name fails where another key refers to one of them."""
    found: set[str] = set()
    for key in map(str, config):
        if OmegaConf.is_missing(config, key):
            found.add(key)
        elif not OmegaConf.is_interpolation(config, key) and isinstance(config[key], DictConfig):
            found |= {f"{key}.{below}" for below in missing_keys(config[key])}
    return found


def views_for(objective: str) -> str:
    """Views that an experiment trains this objective with, first one on a CPU; SimCLR's two where there is none."""
    choices = [chosen(experiment) for experiment in sorted(members("experiment"), key=lambda each: "_cpu" not in each)]
    return next(
        (each["views"] for each in choices if each.get("objective") == objective and "views" in each), "simclr_small"
    )


def shrink(views: DictConfig, size: int) -> None:
    """Make evaluation see ``size`` pixels and all crops smaller in the same proportion."""
    for group in views.groups:
        for operation in group.operations:
            if "size" in operation:
                operation.size = round(operation.size * size / views.size)
    views.size = size


def chosen_for(name: str, backbone: str) -> list[str]:
    """The objective with its own views, and a ViT of the kind that it takes."""
    kind = KINDS.get(name, []) if backbone.startswith("vit") else []
    return [f"objective={name}", f"backbone={backbone}", f"views={views_for(name)}", *kind]


def small_objective(name: str) -> tuple[DictConfig, Objective]:
    """The objective with its own views, small, on the first small backbone that it accepts."""
    refusals = []
    for small in ("resnet_thin", "vit_tiny_small"):
        config = composed(*chosen_for(name, small))
        config.views.update({key: None for key in missing_keys(config.views)})
        shrink(config.views, 16)
        if "support" in config.objective:  # ImageNet's would be hundreds of classes
            config.objective.support.classes_per_batch = 2
        give_teacher(config)
        config.objective.update({key: NARROW for key in WIDTHS if config.objective.get(key, 0) > NARROW})
        config.objective.update(fitting({"threshold": TINY["threshold"]}, config.objective))
        try:
            objective = instantiate(config.objective, backbone=build_backbone(config.backbone, 0))
            load_teacher(objective, config)
            return config, objective
        except InstantiationException as error:
            refusals.append(error.__cause__)
    pytest.fail(f"no small backbone serves objective={name}: {refusals}")


def give_teacher(config: DictConfig) -> None:
    """Names a teacher where an objective needs one."""
    if OmegaConf.is_missing(config.objective, "teacher"):
        config.objective.teacher = str(small_teacher())


def load_teacher(objective: Objective, config: DictConfig) -> None:
    """Hands it over, as a run does."""
    TeacherLoader(Path("no run"), instantiate(config.views), config)(objective)


@cache
def small_teacher() -> Path:
    """A checkpoint as of a run, whose network is of another width than any student here, for images of 12 pixels."""
    config = composed("backbone=resnet_thin", "backbone.width=0.375", "views=simclr_small")
    shrink(config.views, 12)
    state = build_backbone(config.backbone, 5).state_dict()
    parts: Any = {part: OmegaConf.to_container(config[part], resolve=True) for part in ("backbone", "views")}
    file = Path(tempfile.mkdtemp()) / "teacher.ckpt"
    torch.save(
        {"state_dict": {f"objective.backbone.{key}": each for key, each in state.items()}, "config": parts}, file
    )
    return file


TEACHER_WIDTH = 192  # features of small_teacher


def fitting(values: dict[str, Any], objective: DictConfig) -> dict[str, Any]:
    """Those of the values that an objective has a key for; a list only where it has one."""
    return {
        key: value
        for key, value in values.items()
        if objective.get(key) is not None and (not isinstance(value, list) or OmegaConf.is_list(objective[key]))
    }


def small_run(name: str, run_dir: Path, *overrides: str) -> DictConfig:
    """A whole run of an objective that takes milliseconds a step; ``data.path`` and such are among the overrides."""
    backbone = "vit_tiny_small" if name in MASKING else "resnet_thin"
    narrow = ["width=24", "heads=2", "depth=2", f"patch_size={PATCHES[name]}"] if name in MASKING else ["width=0.125"]
    config = composed(*chosen_for(name, backbone), *(f"backbone.{each}" for each in narrow), *RUN, *overrides)
    config.run_dir = str(run_dir)
    config.views.update({key: None for key in missing_keys(config.views)})
    shrink(config.views, 8)
    tiny = fitting(TINY, config.objective)
    config.objective.update(
        {key: value[: len(config.objective[key])] if isinstance(value, list) else value for key, value in tiny.items()}
    )
    give_teacher(config)
    if "support" in config.objective:
        config.objective.support.update({"fraction": 0.5, "classes_per_batch": 2, "images_per_class": 4})
    return config


PATCHES = {"mae": 4, "ibot": 4, "dinov2": 4, "ijepa": 2, "simmim": 2, "data2vec": 2}  # pixels, in views of 8
MASKING = tuple(PATCHES)  # methods that mask patches of a ViT
KINDS = {"ijepa": ["backbone.class_token=false", "backbone.pooling=gap"]}  # what they need of a ViT


def batch_of(objective: Objective, images: Tensor, labels: Tensor, views: Sequence[Tensor]) -> Batch:
    """As training hands it over: with labelled images and companions where the objective asks for them."""
    ids = torch.arange(len(images))
    batch = Batch(images, ids, labels, tuple(views))
    if isinstance(objective, NeedsSupport):
        slots = ids % objective.support.classes_per_batch
        batch = batch._replace(
            support=Support(images, ids, slots, batch.views[: objective.support.views], labels=slots)
        )
    return with_companions(objective, batch)


def with_companions(objective: Objective, batch: Batch) -> Batch:
    """Each image has its neighbour in the batch as a companion."""
    if not isinstance(objective, NeedsCompanions):
        return batch
    wanted, count = objective.companions, len(batch.views)
    own = wanted.own(count)
    companions = Batch(batch.images, batch.ids.roll(1), batch.labels, batch.views[own.start : own.stop])
    return batch._replace(views=batch.views[: wanted.of_batch(count)], companions=companions)


NARROW, WIDTHS = (
    2048,
    ("hidden_dim", "projection_dim", "predictor_dim", "prototypes"),
)  # heads of 8192 and 65,536 would take seconds a step
RUN = [
    "optimizer=sgd",
    "batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.sync_batchnorm=false",
    "online_knn=null",
    "pictures=null",
    "probe=none",
    "log_every_n_steps=1",
]
TINY = {
    "projection_hidden": [16, 16],
    "projection_dim": 16,
    "hidden_dim": 16,
    "embedding_dim": 16,
    "directions": 16,
    "predictor_dim": 8,
    "bottleneck_dim": 8,
    "prototypes": 12,
    "queue_size": 48,
    "queue_length": 32,
    "queue_from_epoch": 1,
    "freeze_prototypes_epochs": 1,
    "bn_splits": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "predictor_width": 16,
    "predictor_depth": 1,
    "predictor_heads": 2,
    "heads": 2,
    "threshold": 0.05,  # of ten clusters the likeliest is always likelier
    "averaged_blocks": 1,
}

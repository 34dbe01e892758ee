"""The trained network that an objective learns from: built, loaded, and handed over with its own images' size."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from unlabeled.backbones.frozen import FrozenNetwork, NeedsTeacher, Normalisation
from unlabeled.commands.arguments.sides import compose_side
from unlabeled.commands.checks.places import names_library
from unlabeled.commands.from_file import part_of
from unlabeled.core.file_config import as_data
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Objective
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone
from unlabeled.weights.preprocess import Preprocess, read_preprocess
from unlabeled.weights.starting.teacher import KEY, load_kept_teacher, read_teacher


class TeacherLoader:
    """Hands the teacher over to an objective that needs one.

    Args:
        folder: of the run's checkpoints: a run that goes on has its teacher there.
        views: of the run.
        trees: configurations in whose ``objective`` the teacher's hash and width are filled in.
    """

    def __init__(self, folder: Path, views: Views, *trees: Any) -> None:
        self.folder, self.views, self.trees = folder, views, trees
        self.record: dict[str, Any] | None = None  # for the checkpoints; None: no teacher is needed

    def __call__(self, objective: Objective) -> None:
        """Loads the teacher, or does nothing for an objective that needs none.

        Raises:
            UserError: it cannot be loaded, or does not take the run's images.
        """
        if not isinstance(objective, NeedsTeacher):
            return
        network, self.record = self._kept(objective) or _read(objective)
        prepared = Preprocess(**self.record["images"])
        if network.channels != self.views.channels:
            have = self.views.channels
            raise UserError(f"{KEY}: it takes images of {network.channels} channels, and the views have {have}")
        network.check_size(prepared.size)
        own, given = (Normalisation(each.mean, each.std) for each in (prepared, self.views))
        teacher = FrozenNetwork(network, given, own, prepared.size, prepared.interpolation)
        objective.take_teacher(teacher, self.record["uses_labels"])
        for tree in self.trees:
            tree["objective"]["teacher_sha256"] = self.record["sha256"]
            tree["objective"]["teacher_width"] = network.num_features

    def _kept(self, objective: NeedsTeacher) -> tuple[Backbone, dict[str, Any]] | None:
        """The teacher of a run that goes on, from its own copy."""
        file = CheckpointFolder(self.folder, 1).find()
        if file is None:
            return None
        record = torch.load(file, map_location="cpu", mmap=True, weights_only=True).get("teacher")
        found: Any = as_data(record, f"checkpoint={file}") if record else {}
        if found.get("origin") != _origin(objective):
            return None
        network: Backbone = instantiate(part_of(found, "backbone", file))
        if load_kept_teacher(self.folder, network, found):
            return network, found
        objective.teacher_sha256 = found["sha256"]  # the file it came from will do, if it is still the same
        return None

    def __str__(self) -> str:
        assert self.record is not None
        images, notes = self.record["images"], self.record["notes"]
        seen = f"images of {images['size']} pixels, mean {images['mean']}, std {images['std']}"
        what = f"learns from {KEY}={self.record['origin']} ({self.record['layout']}: {self.record['encoder']})"
        return "; ".join([what, f"SHA-256 {self.record['sha256']}", seen, *notes])


def _read(objective: NeedsTeacher) -> tuple[Backbone, dict[str, Any]]:
    """The teacher as the objective's keys name it, and what the run's checkpoints say of it."""
    origin = _origin(objective)
    checkpoint = read_teacher(origin, objective.teacher_sha256)
    backbone, views = _parts(objective, checkpoint)
    try:
        network = load_backbone(checkpoint, instantiate(backbone), any_size=True)
    except UserError as error:
        raise UserError(str(error).replace(f"checkpoint={checkpoint.path}", f"{KEY}={origin}", 1)) from error
    prepared = read_preprocess(views).as_dict()
    plain: dict[str, Any] = {key: list(each) if isinstance(each, tuple) else each for key, each in prepared.items()}
    return network.float(), {
        "origin": origin,
        "sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "encoder": checkpoint.part,
        "uses_labels": checkpoint.uses_labels or origin.startswith("torchvision:"),  # its classifiers are
        "notes": list(checkpoint.notes),
        "backbone": OmegaConf.to_container(backbone, resolve=True),
        "images": plain | {"size": objective.teacher_size or plain["size"]},
    }


def _origin(objective: NeedsTeacher) -> str:
    """What the teacher is loaded from, from whatever folder the run is gone on with."""
    given = objective.teacher
    return given if names_library(given) else os.path.abspath(os.path.expanduser(given))


def _parts(objective: NeedsTeacher, checkpoint: Checkpoint) -> tuple[Any, Mapping[str, Any]]:
    """Backbone and views of the teacher: as chosen, else as its own file or library says them."""
    chosen = {"backbone": objective.teacher_backbone, "views": objective.teacher_views}
    side = compose_side(KEY, {key: value for key, value in chosen.items() if value is not None})
    named = checkpoint.config or checkpoint.described
    found = {key: side.get(key) or part_of(named, key, checkpoint.path) for key in chosen}
    for key, value in found.items():
        if value is None:
            raise UserError(
                f"{KEY}={objective.teacher} does not say its {key}: give objective.teacher_{key}=NAME, a choice of"
                f" {key}=…, such as {EXAMPLES[key]}"
            )
    views: Any = OmegaConf.to_container(found["views"], resolve=True)
    return found["backbone"], views


EXAMPLES = {"backbone": "resnet50", "views": "simclr"}

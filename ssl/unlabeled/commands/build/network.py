"""Backbones and objectives: their initial weights, those that a run starts from, and the head of another run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from unlabeled.commands.build.companions import Pretext
from unlabeled.commands.from_file import part_of
from unlabeled.objective import Backbone, HasTeacher, Objective
from unlabeled.training.checkpoints import CheckpointFolder
from unlabeled.weights import Checkpoint, load_objective
from unlabeled.weights.starting.start import StartingWeights, read_start


def build_backbone(config: DictConfig, seed: int) -> Backbone:
    """A backbone initialised from ``seed``: the start of a run, and the random baseline of its evaluation."""
    with seeded_init(seed):
        backbone: Backbone = instantiate(config)
    return backbone


def build_objective(
    config: DictConfig,
    start: StartingWeights | None = None,
    hand_over: Callable[[Objective], None] = lambda objective: None,
) -> Objective:
    """The method around its backbone, both initialised from the run's seed, and the backbone from ``start``.

    The backbone is loaded before the method takes it, so that momentum encoders are copies of what was loaded.
    ``hand_over`` gives the method what it needs besides: a teacher.
    """
    backbone = build_backbone(config.backbone, config.seed)
    if start is not None:
        spec: Any = OmegaConf.to_container(config.backbone, resolve=True)
        start.into_backbone(backbone, spec)
    with seeded_init(config.seed):
        objective: Objective = instantiate(config.objective, backbone=backbone)
        hand_over(objective)
    if start is not None:
        start.into_objective(objective)
    return objective


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed`` and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def read_weights(resolved: dict[str, Any], checkpoints: CheckpointFolder) -> StartingWeights | None:
    """Reads what a run starts from, whose hash goes into ``resolved``; None for nothing, and where the run goes on.

    A run that goes on has the hash from its own checkpoint: the file may be gone by then.
    """
    origin = resolved.get("weights")
    if origin is None:
        return None
    begun = checkpoints.find()
    if begun is not None:
        record = torch.load(begun, map_location="cpu", mmap=True, weights_only=True).get("weights") or {}
        resolved["weights_sha256"] = record.get("sha256")
        return None
    start = read_start(origin, resolved["weights_of"], resolved["weights_sha256"])
    resolved["weights_sha256"] = start.checkpoint.sha256
    return start


def projector_of(config: DictConfig, checkpoint: Checkpoint) -> nn.Module | None:
    """What an objective calls so, or its teacher's where that is evaluated; None for others and files of others."""
    if not config.get("objective"):
        return None
    objective = load_objective(checkpoint, build_objective(config))
    projector = getattr(objective, "projector", None)
    if objective.product() is not objective.backbone and isinstance(objective, HasTeacher):
        pairs = objective.teacher_student_pairs()
        projector = next((teacher for teacher, student in pairs if student is projector), None)
    return projector if isinstance(projector, nn.Module) else None


def pretext_of(config: DictConfig, start: StartingWeights | None) -> Pretext:
    """What a run starts from, with the head that the run of these weights was trained by."""
    if start is None:
        return Pretext(None, None)
    checkpoint = start.checkpoint
    own = part_of(checkpoint.config, "objective", checkpoint.path)
    parts = OmegaConf.create({"backbone": config.backbone, "objective": own, "seed": config.seed})
    return Pretext(start.origin, projector_of(parts, checkpoint))

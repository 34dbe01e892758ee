"""All images of a folder that is not the run's: the share that the run holds out is of its own images alone."""

import os
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.from_file import data_of
from unlabeled.core.places import folder_of
from unlabeled.data.identity import Identity, identity_of, read_identity
from unlabeled.distributed.launch import local_rank
from unlabeled.errors import UserError
from unlabeled.training.same_data import DATA_FILES
from unlabeled.weights import Checkpoint


def with_all_images(config: DictConfig, checkpoint: Checkpoint) -> DictConfig:
    """Lets ``data.path=…`` of other images than the run's be read whole, unless ``data.holdout`` is given too.

    The run's own images that have moved keep their test split: they are known by the identity in the run's folder.

    Args:
        config: as composed; ``data`` without a ``_target_`` holds single keys of the run's own data.
        checkpoint: of the run.
    """
    given: Any = OmegaConf.to_container(config.data) if config.get("data") else {}
    own = (checkpoint.config or {}).get("data") or {}
    if "path" not in given or {"_target_", "holdout"} & set(given) or own.get("holdout") is None:
        return config
    if _absolute(given["path"]) == _absolute(own.get("path")) or _has_moved(config.data, checkpoint):
        return config
    if local_rank() == 0:
        print(
            f"data.path={given['path']}: these are not the run's own images, so all are taken; its "
            f"data.holdout={own['holdout']} counts only if it is given"
        )
    return OmegaConf.create({**config, "data": {**given, "holdout": None}})


def _absolute(path: Any) -> Any:
    return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) else path


def _has_moved(data: DictConfig, checkpoint: Checkpoint) -> bool:
    """Returns whether the training split at the new place is that of the run, or of the run that was fine-tuned."""
    folder = folder_of(checkpoint.path)
    known = [read_identity(place / DATA_FILES) for place in (folder, folder.parent)]
    return any(each is not None and _is_split(each, data, checkpoint.config, checkpoint.path) for each in known)


def _is_split(before: Identity, data: DictConfig, config: Any, file: Path) -> bool:
    try:
        train = instantiate(data_of(data, config, file)).train
    except (UserError, InstantiationException):  # with the run's keys these images cannot even be read
        return False
    now = identity_of(train, before) if len(train) == before.images else None
    return now is not None and now.digest == before.digest

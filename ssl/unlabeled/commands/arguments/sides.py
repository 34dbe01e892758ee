"""One network of a comparison: a run's folder, a file, or the keys of ``conf/representation_side.yaml`` in braces."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from unlabeled.commands.config import compose_config
from unlabeled.errors import UserError

FILES = ("run", "checkpoint")  # keys whose values may hold any letter


def files_of(which: str, given: Any) -> dict[str, Any]:
    """``run`` and ``checkpoint`` of a network; raises UserError for what is neither a name nor keys."""
    if isinstance(given, str):
        kind = "run" if os.path.isdir(Path(given).expanduser()) else "checkpoint"
        return dict.fromkeys(FILES) | {kind: given}
    if not isinstance(given, dict):
        raise UserError(f"{which}={given}: give a run's folder, a checkpoint's file, or key:value pairs in braces")
    return {key: given.get(key) for key in FILES}


def compose_side(which: str, given: Any) -> DictConfig:
    """The configuration of a network. Raises UserError for a wrong key or value."""
    others = {key: value for key, value in given.items() if key not in FILES} if isinstance(given, dict) else {}
    try:
        return compose_config(
            "representation_side", [f"{key}={'null' if value is None else value}" for key, value in others.items()]
        )
    except UserError as error:
        raise UserError(f"{which}: {error}") from error

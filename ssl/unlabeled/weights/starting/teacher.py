"""The trained network that a method learns from: read as data, and kept once in the folder of the run.

The copy is not in the checkpoints, which would each hold it. With it a run goes on when the teacher's own file is gone
or has been trained further; without it the file must be the same as before.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlabeled.core.reading import open_regular
from unlabeled.core.writing import save_safetensors
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.safe_load import read_tensors
from unlabeled.weights.starting.description import describe
from unlabeled.weights.starting.libraries import READERS
from unlabeled.weights.starting.start import read_start

COPY = "teacher.safetensors"  # in checkpoints/


def read_teacher(origin: str, sha256: str | None) -> Checkpoint:
    """Reads what ``objective.teacher=`` names, as :func:`~unlabeled.weights.starting.start.read_start`.

    Raises:
        UserError: there is no such thing, it is no checkpoint, or its hash is not ``sha256``.
    """
    try:
        found = read_start(origin, "backbone", sha256).checkpoint
    except UserError as error:
        message = str(error).replace("weights_sha256=", "objective.teacher_sha256=").replace("weights=", f"{KEY}=")
        raise UserError(message) from error
    if origin.partition(":")[0] in READERS and ":" in origin:
        found.described = describe(origin)
    return found


KEY = "objective.teacher"


def write_teacher(folder: Path, network: Backbone) -> str:
    """Writes the teacher's tensors beside the checkpoints; returns the SHA-256 of the file."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    save_safetensors(folder / COPY, state, {"format": "pt"})
    return _sha256(folder / COPY)


def load_kept_teacher(folder: Path, network: Backbone, record: Mapping[str, Any]) -> bool:
    """Loads the copy that a run has of its teacher; returns whether it is there and is what the run wrote."""
    file = folder / COPY
    if not os.path.isfile(file) or _sha256(file) != record.get("copy_sha256"):
        return False
    network.load_state_dict(read_tensors(file))
    return True


def _sha256(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""The weights that a run starts from: read once, before its first step, and kept in its folder for its report."""

import copy
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from unlabeled.core.places import folder_of
from unlabeled.core.reading import open_regular
from unlabeled.core.writing import save_safetensors
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Objective
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.geometry import NO_CHANGE
from unlabeled.weights.load import load_backbone, load_objective, read_checkpoint
from unlabeled.weights.safe_load import read_tensors
from unlabeled.weights.starting.libraries import read_from_library

COPY = "start.safetensors"  # in checkpoints/: the backbone before its first step

# Of a backbone's configuration: what changes nothing of loaded weights, or may change with them
FREE = (*NO_CHANGE, "image_size")

WeightsOf = Literal["backbone", "all"]


@dataclass(frozen=True)
class StartingWeights:
    """What ``weights=`` names.

    Args:
        origin: as it was given.
        of: ``backbone``, or ``all`` for the heads and the state of the method too.
        checkpoint: what was read.
    """

    origin: str
    of: WeightsOf
    checkpoint: Checkpoint

    def into_backbone(self, backbone: Backbone, spec: Mapping[str, Any]) -> None:
        """Loads every tensor, before an objective is built around it: its teachers are copies then.

        Args:
            backbone: changed in place.
            spec: what it was built from, plain values.

        Raises:
            UserError: not every tensor finds its place; lists each.
        """
        try:
            self._check_same(spec)
            load_backbone(self.checkpoint, backbone, any_size=True)
        except UserError as error:
            raise self._named(error) from error

    def into_objective(self, objective: Objective) -> None:
        """Loads heads, teachers and queues too, as the file has them, where that is asked for."""
        if self.of == "backbone":
            return
        if self.checkpoint.layout != "own run":
            raise UserError(
                f"weights_of=all: weights={self.origin} is no run of this package ({self.checkpoint.layout}), whose "
                "heads would have a place here: give weights_of=backbone"
            )
        try:
            load_objective(self.checkpoint, objective, any_size=True)
        except UserError as error:
            raise self._named(error) from error

    def _check_same(self, spec: Mapping[str, Any]) -> None:
        """A run says what it was made with, which is a better answer than its tensors'."""
        own = (self.checkpoint.config or {}).get("backbone")
        if not isinstance(own, dict):
            return
        keys = [key for key in {**own, **spec} if key not in FREE and own.get(key, spec.get(key)) != spec.get(key)]
        if keys:
            given = ", ".join(f"backbone.{key}={spec.get(key)}, the run has {own.get(key)}" for key in keys)
            raise UserError(f"weights={self.origin}: another backbone: {given}; give backbone as the run has it")

    def _named(self, error: UserError) -> UserError:
        """By the key that was given."""
        return UserError(str(error).replace(f"checkpoint={self.checkpoint.path}", f"weights={self.origin}", 1))

    @property
    def resized(self) -> bool:
        """Tells whether positions are interpolated ones, now or in the run that the file is of."""
        now = any("were interpolated" in note for note in self.checkpoint.notes)
        return now or bool(self.checkpoint.weights.get("resized"))

    def record(self) -> dict[str, Any]:
        """Returns what the run's checkpoints say of it; call it after loading."""
        return {
            "origin": self.origin,
            "sha256": self.checkpoint.sha256,
            "layout": self.checkpoint.layout,
            "encoder": self.checkpoint.part,
            "of": self.of,
            "resized": self.resized,
            "notes": list(self.checkpoint.notes),
        }

    def __str__(self) -> str:
        left = ", ".join(f"{number} of {what}" for what, number in self.checkpoint.left_out.items())
        taken = "all of it" if self.of == "all" else self.checkpoint.part
        parts = [f"starts from weights={self.origin} ({self.checkpoint.layout}: {taken})"]
        parts += [f"SHA-256 {self.checkpoint.sha256}"]
        parts += [f"left out: tensors {left}"] if left and self.of == "backbone" else []
        return "; ".join([*parts, *self.checkpoint.notes])


def read_start(origin: str, of: WeightsOf, sha256: str | None) -> StartingWeights:
    """Reads what ``weights=`` names: a run's folder, a file of any known layout, or what another library has.

    Raises:
        UserError: there is no such thing, it is no checkpoint, or its hash is not ``sha256``.
    """
    checkpoint = read_from_library(origin) or _read_file(origin)
    if sha256 is not None and checkpoint.sha256 != sha256:
        raise UserError(f"weights_sha256={sha256}: weights={origin} has {checkpoint.sha256}")
    return StartingWeights(origin, of, checkpoint)


def _read_file(origin: str) -> Checkpoint:
    path = Path(origin).expanduser()
    file = path / "checkpoints" / "last.ckpt" if os.path.isdir(path) else path
    if not os.path.isfile(file):
        what = "no run: it has no checkpoints/last.ckpt" if os.path.isdir(path) else "no such file or folder of a run"
        raise UserError(f"weights={origin}: {what}; timm:NAME, torchvision:NAME and hf:ORG/NAME are known too")
    try:
        return read_checkpoint(file)
    except UserError as error:
        raise UserError(str(error).replace(f"checkpoint={file}", f"weights={origin}", 1)) from error


def write_start(folder: Path, backbone: Backbone) -> str:
    """Writes the backbone as it is now beside the checkpoints; returns the SHA-256 of the file."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.state_dict().items()}
    save_safetensors(folder / COPY, state, {"format": "pt"})
    return _sha256(folder / COPY)


def starting_backbone(checkpoint: Checkpoint, like: Backbone | None) -> Backbone | None:
    """Loads the backbone as it was when a run started from weights, from the copy beside its checkpoints.

    Args:
        checkpoint: of the run; a note is added where the copy is gone or another.
        like: of the same architecture, left as it is; None for none.

    Returns:
        None where the run did not start from weights, or the copy cannot be used.
    """
    expected = checkpoint.weights.get("start_sha256")
    if like is None or not checkpoint.weights:
        return None
    file = folder_of(checkpoint.path) / "checkpoints" / COPY
    if not os.path.isfile(file) or _sha256(file) != expected:
        what = "is another file than the run wrote" if os.path.isfile(file) else "is gone"
        checkpoint.notes.append(f"{COPY}, the weights that the run started from, {what}: there is no row for them")
        return None
    backbone, state = copy.deepcopy(like), read_tensors(file)
    if not _same_shapes(state, backbone.state_dict()):
        checkpoint.notes.append(f"{COPY} does not fit the backbone: there is no row for the weights at the start")
        return None
    backbone.load_state_dict(state)
    return backbone


def _same_shapes(state: Any, wanted: Mapping[str, Tensor]) -> bool:
    found = {name: value.shape for name, value in state.items()} if isinstance(state, dict) else {}
    return found == {name: value.shape for name, value in wanted.items()}


def _sha256(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""Checks that the runs whose classifiers predict have kept some."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unlabeled.core.places import checkpoint_path, folder_of
from unlabeled.errors import UserError


def check_members(run: str | None, checkpoint: str | None, members: Iterable[str] | None) -> None:
    """Raises UserError for a further run that has no classifier, or that is the run itself."""
    own = checkpoint_path(run, checkpoint).resolve()
    for path in members or []:
        _check_member(path, own)


def check_risk(keys: Mapping[str, Any]) -> None:
    """Raises UserError for a risk beside several predictions of one image, which have no common limit."""
    if keys["risk"] is not None and (keys["members"] or keys["samples"]):
        raise UserError(f"risk={keys['risk']}: is chosen for one classifier; leave members and samples out, or risk")


def _check_member(path: str, own: Path) -> None:
    given = {**named(path), "report_dir": None}
    try:
        check_heads(given)
    except UserError as error:
        raise UserError(f"members: {str(error).removeprefix('run=').removeprefix('checkpoint=')}") from error
    if checkpoint_path(given["run"], given["checkpoint"]).resolve() == own:
        raise UserError(f"members={path}: is the run itself; give runs of other seeds, or samples=20 alone")


def named(path: str) -> dict[str, str | None]:
    """The keys of a command that name a run's folder, or a checkpoint's file."""
    is_file = os.path.isfile(Path(path).expanduser())
    return {"run": None if is_file else path, "checkpoint": path if is_file else None}


def check_heads(keys: Mapping[str, Any]) -> None:
    """Raises UserError for a run without kept classifiers; ``keys`` are run, checkpoint and report_dir."""
    path = checkpoint_path(keys["run"], keys["checkpoint"])
    heads = Path(keys["report_dir"] or folder_of(path) / "report").expanduser() / "heads"
    if not os.path.isdir(heads):
        raise UserError(
            f"{heads}: no such folder; unlabeled evaluate {_as_given(keys)} keeps its classifiers there; it needs "
            "labelled images: add data=CLASS_FOLDERS where those of the run have none"
        )


def _as_given(keys: Mapping[str, Any]) -> str:
    key = "run" if keys["run"] else "checkpoint"
    return f"{key}={keys[key]}"

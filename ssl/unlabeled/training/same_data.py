"""Checks that a resumed run is trained on the images with which it was started."""

from pathlib import Path
from typing import Any

import torch

from unlabeled.core.run_config import MOVABLE_KEYS, differences, read_yaml
from unlabeled.data.identity import Identity, changes, identity_of, read_identity
from unlabeled.data.source import Source
from unlabeled.errors import UserError

DATA_FILES = "data_files.npz"  # in run_dir: the identity of each file, to name changes


def same_data(train: Source, kept: Path, checkpoint: Path | None, resolved: dict[str, Any]) -> Identity | None:
    """Returns the identity of the training split and writes it to ``kept``; None if the source has no identity.

    Args:
        train: the split.
        kept: the identity that an earlier session wrote, if there is one.
        checkpoint: from which the run continues; None for a new run.
        resolved: the configuration; with ``resume=override`` other images are accepted, and the difference is printed.

    Raises:
        UserError: the images are not those of the checkpoint.
    """
    before = read_identity(kept)
    now = identity_of(train, before)
    stored: dict[str, Any] = {}
    if checkpoint is not None:
        stored = torch.load(checkpoint, mmap=True, weights_only=True, map_location="cpu")
    known = stored.get("data")
    problem = None if checkpoint is None else _problem(known, before, now, stored.get("config") or {}, resolved)
    if problem is not None and resolved.get("resume") != "override":
        raise UserError(
            f"{kept.parent}: the training images are not those that the run was started with: {problem}; put them "
            "back, or give data.path=… where they are, resume=override to go on with these, or another name=…"
        )
    if problem is not None:
        print(f"resume=override: the run goes on with other training images: {problem}")
    if now is not None and (before is None or before.digest != now.digest or (before.facts != now.facts).any()):
        now.write(kept)
    return now


def has_moved(config: Path, resolved: dict[str, Any]) -> bool:
    """Returns whether ``config.yaml`` names another folder of the run, or of its images, than it has now."""
    try:
        before = read_yaml(config)
    except (OSError, ValueError):
        return False
    return isinstance(before, dict) and not set(MOVABLE_KEYS).isdisjoint(differences(before, resolved))


def _problem(
    known: Any, before: Identity | None, now: Identity | None, was: dict[str, Any], config: dict[str, Any]
) -> str | None:
    """Returns the difference in words, or None."""
    if not isinstance(known, dict) or now is None:  # an earlier version's checkpoint, or a source without identity
        old, new = (_paths_of(values.get("data")) for values in (was, config))
        return f"they were in {old}, now {new}, and nothing tells whether they are the same" if old != new else None
    if known.get("digest") == now.digest:
        return None
    if before is not None and before.digest == known.get("digest"):
        return changes(before, now)
    return f"{known.get('images')} images in {known.get('files')} files then, {now.images} in {len(now.names)} now"


def _paths_of(data: Any) -> Any:
    return (data.get("path"), data.get("root")) if isinstance(data, dict) else None

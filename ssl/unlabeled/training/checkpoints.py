"""Manages the files with a run's state: written atomically, checked when read, older ones kept in reserve."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from unlabeled.core.archive import damage_of
from unlabeled.errors import UserError

STATE = ("state_dict", "optimizer_states", "loops", "global_step")  # the keys that Lightning needs to resume
NEWEST, PARTIAL = "last.ckpt", "last.partial"


class CheckpointFolder:
    """A folder of states: ``last.ckpt`` is the newest, older ones are named by their step.

    Args:
        folder: where the states are; made when the first is written.
        keep: how many states are kept, the newest included.

    Raises:
        UserError: ``keep`` is less than 1.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise UserError(f"checkpoints_kept={keep}: must be at least 1, or no run could be resumed")
        self.folder, self.keep = folder, keep

    @property
    def newest(self) -> Path:
        """Returns the path of the newest state, which may not exist."""
        return self.folder / NEWEST

    def find(self) -> Path | None:
        """Returns the newest undamaged file, or None if there is no file at all.

        A damaged file is renamed, so that it is not used as a state, and a warning is printed. Every process of a run
        gets the same result.

        Raises:
            UserError: there are files, and all are damaged.
        """
        found = [path for path in [self.newest, *self._older()] if path.exists()]
        for path in found:
            damage = damage_of(path) or _why_no_state(path)
            if damage is None:
                return path
            _rename_if_there(path, path.with_name(path.name + ".damaged"))
            print(
                f"warning: {path} is damaged ({damage}), the state before it is used; it is kept as {path.name}.damaged"
            )
        kept = self.folder.glob("*.ckpt.damaged")  # of an earlier call too, after which nothing begins anew unasked
        damaged = sorted(path.name.removesuffix(".damaged") for path in kept)
        if damaged:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged, {', '.join(damaged)}; put a whole one there as {NEWEST},"
                " or give another name=… to begin again, or remove the files *.damaged"
            )
        return None

    def write(self, save: Callable[[Path], None], step_before: int | None, first: bool) -> None:
        """Writes the newest state; the previous one is kept under the name of its step.

        Args:
            save: writes the state to the path that it is given; called on every process.
            step_before: step of the state in ``last.ckpt``, if there is one.
            first: whether this process is the one that renames files.

        Raises:
            OSError: the state cannot be written; the earlier files stay as they were.
        """
        partial = self.folder / PARTIAL
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save(partial)
            if first:
                _sync(partial)
        except (OSError, RuntimeError):  # torch says RuntimeError for a full disk
            if first:
                partial.unlink(missing_ok=True)
            raise
        if first:
            self._replace_newest(partial, step_before)

    def _replace_newest(self, partial: Path, step_before: int | None) -> None:
        """Puts the new state in place. At every moment a whole state has a name that :meth:`find` looks for."""
        if step_before is not None and self.keep > 1 and self.newest.exists():
            _link(self.newest, self.folder / f"step_{step_before:09d}.ckpt")
        os.replace(partial, self.newest)
        _sync(self.folder)
        for path in self._older()[self.keep - 1 :]:
            path.unlink(missing_ok=True)

    def _older(self) -> list[Path]:
        """Returns the older states, the newest first."""
        return sorted(self.folder.glob("step_*.ckpt"), reverse=True)


def _why_no_state(path: Path) -> str | None:
    """Returns why an undamaged file is not the state of a run, or None; reads no tensor."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any kind of error: the file may be anything
        return f"it cannot be read as tensors and plain values: {type(error).__name__}"
    missing = [key for key in STATE if not isinstance(content, dict) or key not in content]
    return f"no state of a run: it has no {missing[0]}" if missing else None


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, name: Path) -> None:
    """Gives a file a second name; copies it if the file system has no hard links."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def _rename_if_there(path: Path, name: Path) -> None:
    """Renames a file, unless another process of the run has done so already."""
    with suppress(FileNotFoundError):
        os.replace(path, name)

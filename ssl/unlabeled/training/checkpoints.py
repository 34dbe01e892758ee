"""The files that hold a run's state: written whole or not at all, checked when read, the older ones in reserve."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from unlabeled.core.archive import damage_of
from unlabeled.errors import UserError

STATE = ("state_dict", "optimizer_states", "loops", "global_step")  # what Lightning goes on from
NEWEST, PARTIAL = "last.ckpt", "last.partial"


class CheckpointFolder:
    """``last.ckpt`` is the newest state; the ones before it are called after their step.

    Args:
        folder: where they are; made when the first is written.
        keep: how many states stay, the newest among them.

    Raises:
        UserError: none would stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise UserError(f"checkpoints_kept={keep}: one at least must stay, or nothing could go on")
        self.folder, self.keep = folder, keep

    @property
    def newest(self) -> Path:
        """Where the newest state lies, if there is any."""
        return self.folder / NEWEST

    def find(self) -> Path | None:
        """The newest file that is whole, or None where there is none at all.

        A damaged one is renamed, so that nothing takes it for a state, and said on standard output. Every process of a
        run comes to the same answer.

        Raises:
            UserError: there are files, and all are damaged.
        """
        found = [path for path in [self.newest, *self._older()] if path.exists()]
        for path in found:
            damage = damage_of(path) or _foreign(path)
            if damage is None:
                return path
            _rename_if_there(path, path.with_name(path.name + ".damaged"))
            print(
                f"warning: {path} is damaged ({damage}), the state before it is used; it is kept as {path.name}.damaged"
            )
        if found:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged, {', '.join(path.name for path in found)}; put a whole "
                f"one there as {NEWEST}, or give another name=… to begin again"
            )
        return None

    def write(self, save: Callable[[Path], None], step_before: int | None, first: bool) -> None:
        """Write the newest state; the one there is keeps the name of its step.

        Args:
            save: writes the state to the path that it is given; called on every process.
            step_before: of the state that ``last.ckpt`` holds, where it holds one.
            first: whether this process is the one that renames files.

        Raises:
            OSError: it cannot be written; what was there stays as it was.
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
            self._turn(partial, step_before)

    def _turn(self, partial: Path, step_before: int | None) -> None:
        """At every moment there is a whole state under a name that :meth:`find` looks for."""
        if step_before is not None and self.keep > 1 and self.newest.exists():
            _link(self.newest, self.folder / f"step_{step_before:09d}.ckpt")
        os.replace(partial, self.newest)
        _sync(self.folder)
        for path in self._older()[self.keep - 1 :]:
            path.unlink(missing_ok=True)

    def _older(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("step_*.ckpt"), reverse=True)


def _foreign(path: Path) -> str | None:
    """Why a whole file of tensors is no state of a run, or None; reads no tensor."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of any kind, as the file may be anything
        return f"it cannot be read as tensors and plain values: {type(error).__name__}"
    missing = [key for key in STATE if not isinstance(content, dict) or key not in content]
    return f"no state of a run: it has no {missing[0]}" if missing else None


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, name: Path) -> None:
    """Give a file a second name; copy it where the file system knows no such thing."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def _rename_if_there(path: Path, name: Path) -> None:
    """Another process of the run may have done so."""
    with suppress(FileNotFoundError):
        os.replace(path, name)

"""Locks a run's folder with ``run_dir/lock``, so that two processes never train the same run.

A killed run leaves its lock, which is removed when the owner is gone: at once if the owner ran on this machine and its
process does not exist; otherwise if the file has not been touched for some time, as a living owner touches it every few
seconds. It works on NFS: a lock is written under another name and then hard-linked to its own name, which succeeds for
one process only.
"""

import atexit
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytorch_lightning as pl

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import open_regular
from unlabeled.core.writing import make_folder, one_line
from unlabeled.errors import UserError

NAME = "lock"
BEAT = 5.0  # seconds between two heartbeats (our choice)
PATIENCE = 60.0  # seconds without a heartbeat until an owner on another machine is gone: 12 beats (our choice)
MOMENT = 10.0  # seconds: longer than a process takes to make or remove a lock

_held: "dict[Path, RunLock]" = {}  # locks of this process


@dataclass(frozen=True)
class Owner:
    """Names the process that holds a lock."""

    host: str
    machine: str  # equal for processes that can check each other's pid
    pid: int
    started: str  # start time, tells it from a later process with the same pid; empty if unknown
    job: str  # of Slurm; empty without Slurm
    restarts: int  # of that job
    folder: int  # inode of the folder: a copy of the folder has another one
    token: str  # of this lock

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" (Slurm job {self.job})" if self.job else "")


class TakenOver(UserError):
    """Error of a process whose folder another one has taken: it must not write there any more."""


class RunLock:
    """The lock of a run's folder, held from construction to :meth:`release` or the end of the process.

    Args:
        run_dir: made if it is missing. A process trains one run at a time: the lock of one that is over is released;
            while one is under way, in another thread, there is no second.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        _release_former(run_dir)
        self._made_folder = not run_dir.exists()
        self.path = (make_folder(run_dir) / NAME).resolve()
        self.owner = _this_process(self.path.parent)
        self._over = threading.Event()
        self.at_work: bool = False  # whether a training is under way
        self._taken_by: Owner | None = None
        with one_line(self.path):
            self._acquire()
        _held[self.path] = self
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()
        atexit.register(self.release)

    def check(self) -> None:
        """Raises TakenOver if another process has taken the folder, e.g. after this computer slept for a long time."""
        if self._taken_by is not None:
            raise TakenOver(
                f"{self.path.parent} was taken over by {self._taken_by}, since nothing was heard of this process for "
                f"{PATIENCE:.0f} s; it stops and writes no more"
            )

    def release(self) -> None:
        """Releases the lock; may be called more than once."""
        self._over.set()
        _held.pop(self.path, None)
        atexit.unregister(self.release)
        found = _read(self.path)
        if found is not None and found.token == self.owner.token and found.pid == os.getpid():
            with suppress(OSError):
                self.path.unlink()
                if self._made_folder:
                    self.path.parent.rmdir()  # fails, as it should, once the run has written anything

    close = release  # for contextlib.closing

    def _acquire(self) -> None:
        waited = False
        while not self._make():
            found = _read_whole(self.path)
            if found is not None and not _is_gone(found, self.path.parent):
                if _is_on_this_machine(found) or self._is_alive(found, say=not waited):
                    raise UserError(_refusal(self.path, found))
                waited = True
            self._remove_stale(found)

    def _make(self) -> bool:
        """Creates the lock with its content in one atomic operation; returns whether that worked."""
        unfinished = self.path.with_name(f".{NAME}.{uuid4().hex[:8]}.tmp")
        try:
            unfinished.write_text(json.dumps(asdict(self.owner)) + "\n", encoding="utf-8")
            try:
                os.link(unfinished, self.path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return self._make_without_links()
            return True
        finally:
            unfinished.unlink(missing_ok=True)

    def _make_without_links(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self.owner)) + "\n")
        return True

    def _is_alive(self, found: Owner, say: bool) -> bool:
        """Returns whether an owner that cannot be checked from this machine gives a sign of life."""
        first = _modified_at(self.path)
        if first is None or _now(self.path) - first > PATIENCE:
            return False
        if say:
            print(f"{self.path.parent} was in use by {found}: waiting up to {PATIENCE:.0f} s for a sign of life")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(min(BEAT, PATIENCE) / 4)
            now = _modified_at(self.path)
            if now != first:
                return now is not None
        return False

    def _remove_stale(self, found: Owner | None) -> None:
        """Removes a lock that is damaged or whose owner is gone, but not a new one that replaced it meanwhile.

        Only one process at a time can do this: the one that could make a marker folder.
        """
        breaking = self.path.with_name(f".{NAME}.breaking")
        try:
            breaking.mkdir()
        except FileExistsError:
            since = _modified_at(breaking)
            if since is not None and _now(self.path) - since > MOMENT:  # the process that made the marker was killed
                with suppress(OSError):
                    breaking.rmdir()
            time.sleep(0.02)
            return
        try:
            if _read(self.path) == found:
                self.path.unlink(missing_ok=True)
        finally:
            breaking.rmdir()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            found = _read(self.path)
            if found is not None and found.token != self.owner.token:
                self._taken_by = found
                return
            with suppress(OSError):
                os.utime(self.path)


def _release_former(run_dir: Path) -> None:
    """Releases the locks of this process's runs that are over; raises UserError where one is under way."""
    for lock in list(_held.values()):
        if lock.at_work:
            raise UserError(
                f"run_dir={run_dir}: this process trains {lock.path.parent} already, in another thread; wait for it, or"
                " start another process"
            )
        lock.release()


class Held(pl.Callback):
    """Ends a run before it writes its next state, if another process has taken its folder."""

    def __init__(self, lock: RunLock) -> None:
        self.lock = lock

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.lock.check()


def _refusal(path: Path, owner: Owner) -> str:
    return (
        f"run_dir={path.parent}: {owner} is at work on this run; wait for its end, or give another name=…; if it is "
        f"certainly gone remove {path}"
    )


def _read(path: Path) -> Owner | None:
    """Reads the owner of a lock; None if there is no lock or a damaged one."""
    try:
        with open_regular(path) as file:  # NFS refreshes a file when it is opened
            found = Owner(**parse_json(file.read(10_000)))
    except (OSError, ValueError, TypeError):
        return None
    kinds = {each.name: str if each.type in (str, "str") else int for each in fields(Owner)}
    whole = all(type(getattr(found, name)) is kind for name, kind in kinds.items())
    return found if whole and 0 < found.pid < 2**31 else None


def _read_whole(path: Path) -> Owner | None:
    """Reads a lock, waiting a moment for its content: without hard links a new lock is empty at first."""
    while (found := _read(path)) is None:
        since = _modified_at(path)
        if since is None or _now(path) - since > MOMENT:
            return None
        time.sleep(0.05)
    return found


def _modified_at(path: Path) -> float | None:
    """Returns the modification time, by the clock of the file system."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _now(path: Path) -> float:
    """Returns the present time, by the clock of the file system."""
    probe = path.with_name(f".{NAME}.{uuid4().hex[:8]}.tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_on_this_machine(owner: Owner) -> bool:
    """Returns whether this machine can check if the owner is alive."""
    return owner.machine == _machine()


def _is_gone(owner: Owner, folder: Path) -> bool:
    """Returns whether the owner is surely gone: an earlier start of this Slurm job, a dead process, a copied lock."""
    me = _this_process(folder)
    if owner.job and owner.job == me.job and owner.restarts < me.restarts:
        return True
    if not _is_on_this_machine(owner):
        return False
    start = _start_of(owner.pid)
    another = start is None or bool(start and owner.started and start != owner.started)
    return another or owner.folder != me.folder


def _this_process(folder: Path) -> Owner:
    return Owner(
        socket.gethostname(),
        _machine(),
        os.getpid(),
        _start_of(os.getpid()) or "",
        os.environ.get("SLURM_JOB_ID", ""),
        int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        folder.stat().st_ino,
        uuid4().hex,
    )


def _machine() -> str:
    """Identifies a machine since its last boot, and a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _start_of(pid: int) -> str | None:
    """Returns when a process was started, in clock ticks; empty if unknown; None if there is no such process."""
    if not _is_there(pid):
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or other users' processes are hidden
        return ""
    fields = stat.rpartition(")")[2].split()  # the name in brackets may contain anything
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        pass
    return True

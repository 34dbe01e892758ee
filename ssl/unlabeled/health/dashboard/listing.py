"""Finds all runs below a folder and returns them, or only those that changed."""

import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from unlabeled.errors import UserError
from unlabeled.health.dashboard.dashboard_run import MARKS, DashboardRun
from unlabeled.health.dashboard.documents import is_outside
from unlabeled.health.dashboard.notes import write_notes

# Folders inside a run that are not searched; wandb's hold a config.yaml each
BELOW_RUNS = {"checkpoints", "faults", "pictures", "preview", "report", "wandb"}
MOST_FOLDERS = 20_000  # folders that are searched: enough for any outputs/, and a limit if / is given by mistake
FEW, PATIENCE = 40, 0.5  # runs that each answer looks at, and seconds after which it looks at no more; our choice
PAUSE = 0.002  # seconds between two blocks of a long file, so that a browser's question comes in between
OPEN = 32  # runs whose curves are all kept in memory, those that were looked at last
SPARE = 20  # pause after a search, in times its duration: a slow disk is searched 1/20 of the time
SERVED = {".html", ".png", ".jpg", ".svg"}  # files of a run that a browser may ask for


def find_runs(root: Path) -> tuple[list[Path], list[str]]:
    """Returns the folders of runs at any depth, and the folders that were not searched.

    Args:
        root: resolved. Links to folders are not followed.
    """
    found: list[Path] = []
    notes: list[str] = []
    waiting, looked = [root], 0
    while waiting:
        folder = waiting.pop()
        if (looked := looked + 1) > MOST_FOLDERS:
            notes.append(f"only {MOST_FOLDERS:,} folders were looked into")
            break
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            notes.append(f"{printable_path(folder, root)} cannot be read: {error.strerror}")
            continue
        is_run = any(entry.name in MARKS for entry in entries)
        found += [folder] if is_run else []
        for entry in entries:
            if entry.name.startswith(".") or (is_run and entry.name in BELOW_RUNS):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_symlink() and (why := _not_followed(entry, root)):
                notes.append(f"{printable_path(Path(entry.path), root)} is a link that {why}")
    return found, notes


def _not_followed(link: "os.DirEntry[str]", root: Path) -> str:
    """Returns what is said of a link; nothing of one to a file, or to a folder that is searched anyway."""
    try:
        return "leads out of this folder: not followed" if link.is_dir() and is_outside(Path(link.path), root) else ""
    except (OSError, RuntimeError) as error:  # a loop, or a folder that may not be read
        return f"cannot be followed: {getattr(error, 'strerror', None) or 'a loop'}"


def printable_path(path: Path, root: Path) -> str:
    """Returns a path below ``root`` as text that any page can show."""
    return os.fsencode(path.relative_to(root)).decode(errors="replace")


class RunListing:
    """The data that the server sends; may be used from several threads.

    Args:
        root: the folder in which runs are searched, at any depth.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.runs: dict[str, DashboardRun] = {}  # by address: the path below the root, quoted
        self.notes: list[str] = []
        self._last: dict[str, tuple[int, dict[str, Any]]] = {}  # version and content that were returned last
        self._version, self._session = 0, secrets.token_hex(4)
        self._next_search = 0.0
        self._opened: list[DashboardRun] = []  # the last one first
        self._lock = threading.Lock()
        self._looked: dict[str, int] = {}  # address → number of the answer that looked at it last
        self._answers, self._reader, self._closed = 0, False, False  # whether a thread reads long files on

    def changes(self, since: str) -> dict[str, Any]:
        """Returns all runs by address, and the content of those that changed.

        Args:
            since: ``token`` of an earlier answer; any other value gets the content of all runs.
        """
        with self._lock:
            self._search()
            self._look()
            session, _, version = since.partition("-")
            known = int(version[:18]) if session == self._session and version.isdecimal() else -1
            return {
                "token": f"{self._session}-{self._version}",
                "now": time.time(),
                "folder": os.fsencode(self.root).decode(errors="replace"),
                "notes": self.notes,
                "addresses": list(self.runs),
                "runs": {address: content for address, (when, content) in self._last.items() if when > known},
            }

    def detail(self, address: str) -> dict[str, Any] | None:
        """Returns all about one run; None if there is no run at this address."""
        with self._lock:
            run = self.runs.get(address)
            if run is None:
                self._next_search = 0.0
                self._search()
                run = self.runs.get(address)
            if run is None:
                return None
            self._opened = [run, *(each for each in self._opened if each is not run)][:OPEN]
            found = {**_overview(run, time.time()), "name": printable_path(run.folder, self.root), **_detail(run)}
            found = _sendable(found)
            for each in self.runs.values():
                if each not in self._opened:
                    each.series = None
            return found

    def annotate(self, address: str, notes: Mapping[str, Any]) -> bool:
        """Writes note and tags of a run; False if there is no run at this address. Raises UserError."""
        with self._lock:
            run = self.runs.get(address)
            if run is None:
                return False
            if is_outside(run.folder, self.root):
                raise UserError("the folder of this run is a link that leads elsewhere; nothing is written")
            write_notes(run.folder, notes)
            self._looked.pop(address, None)
            return True

    def close(self) -> None:
        """Ends the thread that reads long files."""
        self._closed = True

    def file(self, quoted: str) -> Path | None:
        """Returns a file below the root that may be served; None for any other, whether it exists or not."""
        parts = os.fsdecode(unquote_to_bytes(quoted)).split("/")
        if any(part in ("", ".", "..") or part.startswith(".") or "\0" in part for part in parts):
            return None
        try:
            path = self.root.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError):
            return None
        allowed = path.is_relative_to(self.root) and path.is_file() and path.suffix in SERVED
        return path if allowed else None

    def _search(self) -> None:
        begun = time.monotonic()
        if begun < self._next_search:
            return
        found, self.notes = find_runs(self.root)
        addresses = {quote_from_bytes(os.fsencode(folder.relative_to(self.root))): folder for folder in found}
        self.runs = {a: self.runs.get(a) or DashboardRun(folder, self.root) for a, folder in addresses.items()}
        self._last = {address: kept for address, kept in self._last.items() if address in self.runs}
        self._looked = {address: when for address, when in self._looked.items() if address in self.runs}
        self._next_search = time.monotonic() + SPARE * (time.monotonic() - begun)

    def _look(self) -> None:
        """Looks at the runs again; where that takes long, at those first that were not looked at for the longest."""
        begun, self._answers = time.monotonic(), self._answers + 1
        waiting = sorted(self.runs, key=lambda address: self._looked.get(address, 0))
        for number, address in enumerate(waiting):
            if number >= FEW and time.monotonic() - begun > PATIENCE:
                break
            self._looked[address] = self._answers
            self._note(address, _overview(self.runs[address], time.time()))
        if self._reader or len(self._looked) < len(self.runs):
            return
        if any(run.summary.behind for run in self.runs.values()):
            self._reader = True
            threading.Thread(target=self._read_on, daemon=True).start()

    def _read_on(self) -> None:
        """Reads what is left of long files, a block at a time, until all are read."""
        while True:
            with self._lock:
                run = next((each for each in self.runs.values() if each.summary.behind), None)
                if run is None or self._closed:
                    self._reader = False
                    return
                run.read_on()
            time.sleep(PAUSE)

    def _note(self, address: str, content: dict[str, Any]) -> None:
        content["name"] = printable_path(self.runs[address].folder, self.root)
        if address not in self._last or self._last[address][1] != content:
            content = _sendable(content)
            self._version += 1
            self._last[address] = (self._version, content)


def _overview(run: DashboardRun, now: float) -> dict[str, Any]:
    """Returns the overview of any folder; a damage of an unknown kind must not hide the other runs."""
    try:
        return run.overview(now)
    except Exception as error:
        return {"state": "damaged", "problems": [f"it cannot be read: {type(error).__name__}: {error}"[:300]]}


def _sendable(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content, or of one that is no JSON its name alone: a single run must not hide the others."""
    try:
        json.dumps(content, allow_nan=False)
        return content
    except ValueError as error:
        return {"name": content["name"], "state": "damaged", "problems": [f"it cannot be shown: {error}"[:300]]}


def _detail(run: DashboardRun) -> dict[str, Any]:
    try:
        return run.detail()
    except Exception as error:
        return {"trouble": f"its curves and files cannot be read: {type(error).__name__}: {error}"[:300]}

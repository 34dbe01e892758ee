"""Walks through all folders under a root and lists every regular file once: follows links, but never in a loop."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unlabeled.core.reading import kind_of
from unlabeled.data.lists.left_out import LeftOut, leave_out

_LOOP = "links to a folder above them, not followed"
_AGAIN = "folders that are listed under another name"
SAME = "files that are listed under another name"
_CLOSED = "folders that may not be read"
_HIDDEN = "hidden files and folders"
_OURS = "folders of runs and other results"
# What a folder holds that a command here has written. Started among the images, it writes pictures there too.
_WRITTEN = (
    {"config.yaml", "metrics.jsonl"},  # a run
    {"config.yaml", "checkpoints"},  # a run that has been copied
    {"index.html", "views.png"},  # a preview
    {"inspect.json", "inspect.md"},
)

_Identity = tuple[int, int]  # device and inode


@dataclass
class Folder:
    """A folder with the names of its regular files, sorted; hidden ones are left out."""

    inside: str  # path relative to the root; "." is the root
    changed: int  # ns, time when a file was last added or removed
    names: list[str] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)
    links: set[str] = field(default_factory=set)  # names that are symbolic links


def walk(root: Path, left_out: LeftOut, skip: Iterable[str] = ()) -> list[Folder]:
    """Lists each folder under ``root`` once, in the order of ``os.walk`` with sorted names.

    Of several names of a folder or file the one that is not a link is kept, else the first. Everything that is not
    listed, except the top folders ``skip``, is counted in ``left_out``.
    """
    walked = _Walk(root, left_out, set(skip))
    walked.down(".", False)
    while walked.links:  # links come last: a link must not replace its target
        walked.links.sort()
        walked.follow(walked.links.pop(0))
    found = sorted(walked.found, key=lambda folder: () if folder.inside == "." else tuple(folder.inside.split(os.sep)))
    _each_file_once(root, found, left_out)
    return found


class _Walk:
    def __init__(self, root: Path, left_out: LeftOut, skip: set[str]) -> None:
        self.root, self.left_out, self.skip = root, left_out, skip
        self.found: list[Folder] = []
        self.links: list[str] = []  # links to folders, not followed yet
        self.seen: set[_Identity] = set()

    def down(self, inside: str, by_link: bool) -> None:
        """Lists a folder and those below it; below a link, only folders that were not listed before."""
        waiting = [inside]
        while waiting:
            inside = waiting.pop()
            try:
                status = os.stat(self.root / inside)
            except OSError:
                leave_out(self.left_out, _CLOSED, inside)
                continue
            identity = (status.st_dev, status.st_ino)
            if by_link and identity in self.seen:
                leave_out(self.left_out, _AGAIN, inside)
                continue
            self.seen.add(identity)
            waiting += self._list(Folder(inside, status.st_mtime_ns))

    def follow(self, inside: str) -> None:
        target = os.path.realpath(self.root / inside)
        here = os.path.realpath((self.root / inside).parent)
        if any(os.path.commonpath([target, place]) == target for place in (here, os.path.realpath(self.root))):
            leave_out(self.left_out, _LOOP, inside)
        else:
            self.down(inside, True)

    def _list(self, folder: Folder) -> list[str]:
        """Lists one folder; returns the folders in it that are not links."""
        below: list[str] = []
        try:
            entries = sorted(os.scandir(self.root / folder.inside), key=lambda entry: entry.name)
        except OSError:
            leave_out(self.left_out, _CLOSED, folder.inside)
            return []
        if folder.inside != "." and any(written <= {entry.name for entry in entries} for written in _WRITTEN):
            leave_out(self.left_out, _OURS, folder.inside)
            return []
        self.found.append(folder)
        for entry in entries:
            inside = os.path.normpath(os.path.join(folder.inside, entry.name))
            if entry.name.startswith("."):
                leave_out(self.left_out, _HIDDEN, inside)
            elif _is_folder(entry):
                if inside not in self.skip:
                    (self.links if entry.is_symlink() else below).append(inside)
            else:
                self._add(folder, entry, inside)
        return below

    def _add(self, folder: Folder, entry: "os.DirEntry[str]", inside: str) -> None:
        link = entry.is_symlink()
        try:
            if entry.is_file():
                folder.inodes.append(entry.stat().st_ino if link else entry.inode())
                folder.names.append(entry.name)
                folder.links |= {entry.name} if link else set()
                return
            reason = f"files that are {kind_of(entry.stat().st_mode)}"
        except OSError:
            reason = "broken links"
        leave_out(self.left_out, reason, inside)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _each_file_once(root: Path, folders: list[Folder], left_out: LeftOut) -> None:
    """Drops further names of the same file. Repeated inodes are checked, as some file systems make them up."""
    every = np.array([inode for folder in folders for inode in folder.inodes], np.uint64)
    values, counts = np.unique(every, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    if not repeated:
        return
    groups: dict[_Identity, list[tuple[bool, int, str]]] = defaultdict(list)
    for number, folder in enumerate(folders):
        for name, inode in zip(folder.names, folder.inodes, strict=True):
            if inode in repeated:
                status = os.stat(root / folder.inside / name)
                is_link = name in folder.links
                if is_link or status.st_nlink > 1:
                    groups[status.st_dev, status.st_ino].append((is_link, number, name))
                else:  # all names of the file are links
                    groups[status.st_dev, status.st_ino].insert(0, (False, -1, name))
    further = {(n, name) for group in groups.values() for _, n, name in sorted(group)[1:] if n >= 0}
    for number, folder in enumerate(folders):
        kept = [place for place, name in enumerate(folder.names) if (number, name) not in further]
        for name in folder.names if len(kept) < len(folder.names) else ():
            if (number, name) in further:
                leave_out(left_out, SAME, os.path.normpath(os.path.join(folder.inside, name)))
        folder.names, folder.inodes = [folder.names[place] for place in kept], [folder.inodes[place] for place in kept]

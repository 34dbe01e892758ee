"""Lists of image files with the class of each: of one folder, or of several lists joined."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unlabeled.data.lists.index import Index, IndexNote, load_or_build, make_index
from unlabeled.data.lists.left_out import LeftOut, leave_out, sum_counts
from unlabeled.data.lists.pictures import extension_of, looks_like_image, readable_extensions
from unlabeled.data.lists.walk import Folder, walk

_SETTLED = 2 * 10**9  # ns: a folder changed this recently may change again without a new time stamp
_NO_IMAGE = "files that are no images by their names"
_EMPTY = "folders beside the classes that hold no image"


@dataclass
class Listing:
    """A list of N image files of one split."""

    root: Path  # of the paths
    index: Index  # columns ``path``: relative to ``root``, or absolute; ``inode``: of the file
    owners: np.ndarray  # int64 [N], number of the class, -1 for none
    classes: list[str]
    where: str  # folder or list file, for errors
    left_out: LeftOut = field(default_factory=dict)
    of_folder: bool = True  # True: classes are sub-folders; False: labels come from a list file

    def path(self, row: int) -> str:
        """Returns the path of one image, relative to ``root`` where it lies under it."""
        return os.fsdecode(self.index.text("path", row))

    def first(self, chosen: np.ndarray) -> str | None:
        """Returns the path of the first of the chosen rows."""
        rows = np.flatnonzero(chosen)
        return self.path(int(rows[0])) if len(rows) else None


def of_folder(root: Path, place: str | None) -> Listing:
    """Lists all images under a folder, with the sub-folder that each belongs to.

    The list is stored in ``place``, see :func:`unlabeled.data.lists.index.load_or_build`.
    """
    wanted: IndexNote = {"of": str(root.resolve()), "extensions": sorted(readable_extensions())}
    index = load_or_build(wanted, place, lambda note: _unchanged(root, note["folders"]), lambda: _scan(root))
    return Listing(root, index, index.numbers("owner"), index.note["classes"], str(root), index.note["left_out"])


def of_image(file: Path) -> Listing:
    """Returns a list of a single image, of no class."""
    index = index_of([os.fsencode(file.name)], [file.stat().st_ino])
    return Listing(file.parent, index, np.array([-1]), [], str(file), of_folder=False)


def index_of(paths: list[bytes], inodes: list[int] | np.ndarray) -> Index:
    """Returns the index of a short list in memory."""
    return make_index({"path": paths, "inode": _as_int64(inodes)}, {})


def _as_int64(inodes: list[int] | np.ndarray) -> np.ndarray:
    return np.asarray(inodes, np.uint64).view(np.int64) if isinstance(inodes, list) else inodes


def join_listings(parts: list[Listing]) -> Listing:
    """Joins several lists into one, one after the other; classes with the same name become one."""
    if len(parts) == 1:
        return parts[0]
    classes = sorted({name for part in parts for name in part.classes})
    number, paths, owners = {name: place for place, name in enumerate(classes)}, list[bytes](), list[np.ndarray]()
    for part in parts:
        paths += [os.fsencode(os.path.abspath(part.root / part.path(row))) for row in range(len(part.index))]
        own = np.array([*(number[name] for name in part.classes), -1])  # the last entry maps -1 to -1
        owners.append(own[part.owners])
    every, where = sum_counts(part.left_out for part in parts), ", ".join(part.where for part in parts)
    folders = all(part.of_folder for part in parts)
    inodes = np.concatenate([part.index.numbers("inode") for part in parts])
    return Listing(Path(os.sep), index_of(paths, inodes), np.concatenate(owners), classes, where, every, folders)


def first_image(root: Path, skip: list[str]) -> str | None:
    """Returns some image under a folder (relative path), not in the top folders ``skip``; None if there is none."""
    extensions = readable_extensions()
    for folder in walk(root, {}, skip):
        found = _images(root, folder, extensions, {})
        if found:
            return os.path.normpath(os.path.join(folder.inside, found[0][0]))
    return None


def _scan(root: Path) -> tuple[dict[str, np.ndarray | list[bytes]], IndexNote]:
    settled, left_out = time.time_ns() - _SETTLED, LeftOut()
    paths, owners, classes, folders = list[bytes](), list[int](), dict[str, int](), list[tuple[str, int]]()
    inodes = list[int]()
    extensions = readable_extensions()
    for folder in walk(root, left_out):
        found = _images(root, folder, extensions, left_out)
        folders.append((folder.inside, folder.changed if folder.changed < settled else 0))
        owner = folder.inside.split(os.sep, 1)[0]
        number = -1 if folder.inside == "." else classes.setdefault(owner, len(classes)) if found else 0
        paths += [os.fsencode(os.path.normpath(os.path.join(folder.inside, name))) for name, _ in found]
        owners += [number] * len(found)
        inodes += [inode for _, inode in found]
    for inside, _ in folders:
        if classes and inside != "." and os.sep not in inside and inside not in classes:
            leave_out(left_out, _EMPTY, inside)
    columns: dict[str, np.ndarray | list[bytes]] = {"path": paths, "owner": np.array(owners, np.int64)}
    columns["inode"] = _as_int64(inodes)
    return columns, {"classes": list(classes), "folders": folders, "left_out": left_out}


def _unchanged(root: Path, folders: list[tuple[str, int]]) -> bool:
    """Checks by the folders' times alone whether no file was added or removed."""
    try:
        return all(os.stat(root / inside).st_mtime_ns == changed for inside, changed in folders)
    except OSError:
        return False


def _images(root: Path, folder: Folder, extensions: set[str], left_out: LeftOut) -> list[tuple[str, int]]:
    """Returns name and inode of each image in a folder; one without an extension is recognised by its first bytes."""
    found = []
    for name, inode in zip(folder.names, folder.inodes, strict=True):
        extension = extension_of(name)
        if extension in extensions or (not extension and looks_like_image(root / folder.inside / name)):
            found.append((name, inode))
        else:
            leave_out(left_out, _NO_IMAGE, os.path.normpath(os.path.join(folder.inside, name)))
    return found

"""Lists of image files with the class of each: of a folder, and of several lists together."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unlabeled.data.lists.index import Index, IndexNote, load_or_build, make_index
from unlabeled.data.lists.left_out import LeftOut, leave_out, merged
from unlabeled.data.lists.pictures import extension_of, looks_like_image, readable_extensions
from unlabeled.data.lists.walk import Folder, walk

_SETTLED = 2 * 10**9  # ns: a folder changed so shortly before its scan may change again within one tick of its clock
_NO_IMAGE = "files that are no images by their names"


@dataclass
class Listing:
    """N image files of one split."""

    root: Path  # of the paths
    index: Index  # column ``path``: relative to ``root``, or absolute
    owners: np.ndarray  # int64 [N], number of the class, -1 for none
    classes: list[str]
    where: str  # folder or file that it is of, for errors
    left_out: LeftOut = field(default_factory=dict)
    of_folder: bool = True  # classes are sub-folders; False: labels that a file gives

    def path(self, row: int) -> str:
        """Of one image, relative to ``root`` where it lies under it."""
        return os.fsdecode(self.index.text("path", row))

    def first(self, chosen: np.ndarray) -> str | None:
        """Path of the first of some rows."""
        rows = np.flatnonzero(chosen)
        return self.path(int(rows[0])) if len(rows) else None


def of_folder(root: Path, place: str | None) -> Listing:
    """All images under a folder, owned by its sub-folders; kept in ``place``, see "
    ":func:`unlabeled.data.lists.index.load_or_build`."""
    wanted: IndexNote = {"of": str(root.resolve()), "extensions": sorted(readable_extensions())}
    index = load_or_build(wanted, place, lambda note: _unchanged(root, note["folders"]), lambda: _scan(root))
    return Listing(root, index, index.numbers("owner"), index.note["classes"], str(root), index.note["left_out"])


def of_image(file: Path) -> Listing:
    """A single image, of no class."""
    index = make_index({"path": [os.fsencode(file.name)]}, {})
    return Listing(file.parent, index, np.array([-1]), [], str(file), of_folder=False)


def together(parts: list[Listing]) -> Listing:
    """The images of several lists, one after the other, with the classes of all by their names."""
    if len(parts) == 1:
        return parts[0]
    classes = sorted({name for part in parts for name in part.classes})
    number, paths, owners = {name: place for place, name in enumerate(classes)}, list[bytes](), list[np.ndarray]()
    for part in parts:
        paths += [os.fsencode(os.path.abspath(part.root / part.path(row))) for row in range(len(part.index))]
        own = np.array([*(number[name] for name in part.classes), -1])  # the last is that of -1
        owners.append(own[part.owners])
    every, where = merged(part.left_out for part in parts), ", ".join(part.where for part in parts)
    folders = all(part.of_folder for part in parts)
    return Listing(
        Path(os.sep), make_index({"path": paths}, {}), np.concatenate(owners), classes, where, every, folders
    )


def first_image(root: Path, skip: list[str]) -> str | None:
    """Some image under a folder, relative to it, that is not in the top folders ``skip``; None where there is none."""
    extensions = readable_extensions()
    for folder in walk(root, {}, skip):
        names = _images(root, folder, extensions, {})
        if names:
            return os.path.normpath(os.path.join(folder.inside, names[0]))
    return None


def _scan(root: Path) -> tuple[dict[str, np.ndarray | list[bytes]], IndexNote]:
    settled, left_out = time.time_ns() - _SETTLED, LeftOut()
    paths, owners, classes, folders = list[bytes](), list[int](), dict[str, int](), list[tuple[str, int]]()
    extensions = readable_extensions()
    for folder in walk(root, left_out):
        names = _images(root, folder, extensions, left_out)
        folders.append((folder.inside, folder.changed if folder.changed < settled else 0))
        owner = folder.inside.split(os.sep, 1)[0]
        number = -1 if folder.inside == "." else classes.setdefault(owner, len(classes)) if names else 0
        paths += [os.fsencode(os.path.normpath(os.path.join(folder.inside, name))) for name in names]
        owners += [number] * len(names)
    columns: dict[str, np.ndarray | list[bytes]] = {"path": paths, "owner": np.array(owners, np.int64)}
    return columns, {"classes": list(classes), "folders": folders, "left_out": left_out}


def _unchanged(root: Path, folders: list[tuple[str, int]]) -> bool:
    """Whether no file has come or gone: no file is looked at."""
    try:
        return all(os.stat(root / inside).st_mtime_ns == changed for inside, changed in folders)
    except OSError:
        return False


def _images(root: Path, folder: Folder, extensions: set[str], left_out: LeftOut) -> list[str]:
    """Names of the images in a folder; one without an extension is one if its first bytes say so."""
    found = []
    for name in folder.names:
        extension = extension_of(name)
        if extension in extensions or (not extension and looks_like_image(root / folder.inside / name)):
            found.append(name)
        else:
            leave_out(left_out, _NO_IMAGE, os.path.normpath(os.path.join(folder.inside, name)))
    return found

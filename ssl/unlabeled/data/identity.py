"""Identity of the training images: detects changed files, and recognises a data set that was moved as a whole.

The identity consists of file names relative to the common folder, sizes, sampled contents, labels and order. Location
and times are not part of it: a copy is the same data. Times (mtime, and ctime, which a user cannot set) only save work:
a file with unchanged name, size and times is not read again.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from unlabeled.core.reading import open_regular, require_regular, shown_path
from unlabeled.core.writing import save_arrays
from unlabeled.data.fingerprint import HasFiles
from unlabeled.data.memory import ArraySource
from unlabeled.data.source import Source, shared_folder
from unlabeled.data.sources.files import file_stamps, is_url, read_range
from unlabeled.errors import UserError

WHOLE = 2**14  # bytes: smaller files are hashed whole
_BLOCK = 2**12  # bytes hashed at each of 4 places of larger files, at 64 places from 64 MiB on
_AT_ONCE, _CHUNK = 8, 512  # threads, as network storage answers slowly; files per call of a thread
_NAMED = 3  # files named in a message
_Result = TypeVar("_Result")
_Facts = tuple[int, int, int]  # size, mtime, ctime in ns; or an object store's own stamps


@dataclass
class Identity:
    """Identity of a training split with F files."""

    digest: str  # SHA-256 of everything except paths and times
    images: int
    names: list[bytes]  # [F], paths relative to the common folder
    facts: np.ndarray  # int64 [F, 3], see _Facts; size -1: the file is missing
    contents: np.ndarray  # int64 [F], a hash

    def brief(self) -> dict[str, Any]:
        """Returns the short form of the identity that a checkpoint stores."""
        return {"digest": self.digest, "images": self.images, "files": len(self.names)}

    def write(self, path: Path) -> None:
        """Writes the identity atomically; 50,000 files take 3 MB. Raises Unwritable."""
        arrays = {"names": np.frombuffer(b"\0".join(self.names), np.uint8), "facts": self.facts}
        arrays |= {"contents": self.contents, "digest": np.array(self.digest), "images": np.array(self.images)}
        save_arrays(path, arrays)


def read_identity(path: Path) -> Identity | None:
    """Reads what :meth:`Identity.write` wrote; None if it is missing or damaged: the files are then read again."""
    try:
        require_regular(path)
        with np.load(path, allow_pickle=False) as stored:
            names = stored["names"].astype(np.uint8).tobytes().split(b"\0")
            facts, contents = stored["facts"].astype(np.int64), stored["contents"].astype(np.int64)
            digest, images = str(stored["digest"]), int(stored["images"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, NotImplementedError):
        return None
    whole = facts.shape == (len(names), 3) and contents.shape == (len(names),)
    return Identity(digest, images, names, facts, contents) if whole else None


def identity_of(source: Source, before: Identity | None = None) -> Identity | None:
    """Computes the identity of a training split as it is now; None for a custom source that does not list its files.

    Args:
        source: the split; no image is decoded.
        before: an earlier identity; its files are read again only if size or times differ.
    """
    digest = hashlib.sha256(f"{len(source)} {source.classes}\n".encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(source.labels.numpy()).data)
    if isinstance(source, ArraySource):
        content = hashlib.sha256(source.images.contiguous().numpy().data).digest()
        names, facts = [b"images in memory"], np.array([[source.images.nbytes, 0, 0]])
        contents = np.frombuffer(content[:8], np.int64)
    elif isinstance(source, HasFiles):
        paths = source.files()
        shared = shared_folder(paths)
        names = [os.fsencode(path.removeprefix(shared)) for path in paths]
        facts = np.array(_map_threads(_facts, paths), np.int64).reshape(-1, 3)
        contents = _contents(paths, names, facts, before)
        digest.update(source.within().encode())
    else:
        return None
    for name, size, content in zip(names, facts[:, 0].tolist(), contents.tolist(), strict=True):
        digest.update(b"%b\0%d %d\n" % (name, size, content))
    return Identity(digest.hexdigest(), len(source), names, facts, contents)


def changes(before: Identity, now: Identity) -> str:
    """Describes how the files have changed: how many were added, removed, renamed, edited or exchanged."""
    old = {name: place for place, name in enumerate(before.names)}
    new = {name: place for place, name in enumerate(now.names)}
    gone, come = [name for name in old if name not in new], [name for name in new if name not in old]
    where = {_content(before, old[name]): name for name in gone}
    renamed = [(where[_content(now, new[name])], name) for name in come if _content(now, new[name]) in where]
    edited = [name for name in old if name in new and _content(before, old[name]) != _content(now, new[name])]
    held = {_content(before, old[name]) for name in edited}
    exchanged = [name for name in edited if _content(now, new[name]) in held]
    again = {name for pair in renamed for name in pair}
    kinds = {
        "removed": [name for name in gone if name not in again],
        "added": [name for name in come if name not in again],
        "renamed": [was + b" is " + name for was, name in renamed],
        "exchanged": exchanged,
        "edited": [name for name in edited if name not in {*exchanged}],
    }
    return (
        "; ".join(_counted(word, names) for word, names in kinds.items() if names) or "labels, or their order, differ"
    )


def shared_images(source: Source, known: Identity) -> int:
    """Returns how many images of a source have a file whose content one of the known files has.

    0 for a source without a file for each image, such as a parquet file: its files say nothing of one image.
    """
    if not isinstance(source, HasFiles) or len(paths := source.files()) != len(source):
        return 0
    facts = np.array(_map_threads(_facts, paths), np.int64).reshape(-1, 3)
    now = _contents(paths, [os.fsencode(path) for path in paths], facts, None)
    there = set(zip(known.facts[:, 0].tolist(), known.contents.tolist(), strict=True))
    return sum(each[0] > 0 and each in there for each in zip(facts[:, 0].tolist(), now.tolist(), strict=True))


def _counted(word: str, names: list[bytes]) -> str:
    few = ", ".join(map(shown_path, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")
    return f"{len(names):,} {'file' if len(names) == 1 else 'files'} {word} ({few})"


def _content(identity: Identity, place: int) -> tuple[int, int]:
    return int(identity.facts[place, 0]), int(identity.contents[place])


def _contents(paths: list[str], names: list[bytes], facts: np.ndarray, before: Identity | None) -> np.ndarray:
    """Returns the content hashes of all files; those of unchanged files are taken from ``before``."""
    contents, unknown = np.zeros(len(paths), np.int64), np.ones(len(paths), bool)
    if before is not None:
        places = {name: place for place, name in enumerate(before.names)}
        old = np.array([places.get(name, -1) for name in names], np.int64)
        same = (old >= 0) & (before.facts[old] == facts).all(1) if len(before.names) else old >= 0
        contents[same], unknown = before.contents[old[same]], ~same
    rows = np.flatnonzero(unknown).tolist()
    contents[rows] = _map_threads(_hash, [(paths[row], int(facts[row, 0])) for row in rows])
    return contents


def _map_threads(function: Callable[[Any], _Result], values: list[Any]) -> list[_Result]:
    """Calls the function for each value, in threads, because it waits for files."""
    parts = [values[first : first + _CHUNK] for first in range(0, len(values), _CHUNK)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [found for part in pool.map(lambda part: [function(value) for value in part], parts) for found in part]


def _facts(path: str) -> _Facts:
    try:
        if is_url(path):
            _, size, version = file_stamps([path])[0]
            return size, int.from_bytes(hashlib.sha256(str(version).encode()).digest()[:7]), 0
        status = require_regular(path)
    except (OSError, UserError):
        return -1, 0, 0  # missing file: its image cannot be decoded
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash(file: tuple[str, int]) -> int:
    """Hashes a file's contents at some places, or all of a small file; 0 where it cannot be read."""
    path, size = file
    digest = hashlib.blake2b(digest_size=8)
    try:
        for part in _parts(path, size):
            digest.update(part)
    except Exception:  # every store raises its own errors
        return 0
    return int.from_bytes(digest.digest(), signed=True)


def _parts(path: str, size: int) -> list[bytes]:
    count = 4 if is_url(path) else min(64, max(4, size >> 20))
    places = [(size - _BLOCK) * number // (count - 1) for number in range(count)]
    ranges = [(0, size)] if size <= WHOLE else [(place, _BLOCK) for place in places]
    if is_url(path):
        return [read_range(path, *span) for span in ranges]
    with open_regular(path) as file:
        return [os.pread(file.fileno(), length, place) for place, length in ranges]

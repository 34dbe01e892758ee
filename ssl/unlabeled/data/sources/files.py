"""Reads local files and files in object stores (``s3://``, ``gs://``, ``https://`` through fsspec) by byte ranges."""

import fnmatch
import glob
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

from unlabeled.core.phrases import one_line, shorten_list
from unlabeled.core.reading import open_regular, require_regular, shown_path
from unlabeled.data.lists.left_out import LeftOut
from unlabeled.data.lists.walk import walk
from unlabeled.errors import UserError

_AT_ONCE = 16  # parallel requests to an object store, which has long latency and high bandwidth
_OPEN_FILES = 64  # files that a process keeps open
_VERSIONS = ("ETag", "etag", "LastModified", "mtime", "updated", "created")  # the stores' names for a file's version
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
MOST_NAMES = 1_000_000  # most names that one pattern may stand for
_Result = TypeVar("_Result")


def is_url(path: str) -> bool:
    return "://" in path


def read_range(path: str, offset: int, size: int) -> bytes:
    """Reads ``size`` bytes from ``offset`` on, fewer at the end of the file; safe in threads and workers; OSError."""
    if not is_url(path):
        file = _open_file(path)  # kept in a variable, so that another thread cannot close it by opening more files
        return os.pread(file.fileno(), size, offset)
    system, inside = _system(path)
    return bytes(system.cat_file(inside, start=offset, end=offset + size))


def open_file(path: str) -> IO[bytes]:
    """Opens a file to be read from its beginning to its end."""
    if not is_url(path):
        return open_regular(path)
    file: IO[bytes] = _ask_filesystem(
        path, lambda system, inside: system.open(inside, "rb", block_size=2**24, cache_type="readahead")
    )
    return file


def file_stamps(paths: list[str]) -> list[list[Any]]:
    """Returns path, size and time (or version) of each file: these change when the file changes. Raises OSError."""
    return map_paths(_stamp, paths)


def map_paths(function: Callable[[str], _Result], paths: list[str]) -> list[_Result]:
    """Calls the function for each path, many in parallel where the files are remote."""
    if not any(map(is_url, paths)):
        return [function(path) for path in paths]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, paths))


def match_files(path: str, pattern: str, key: str, kind: str) -> list[str]:
    """Returns the files that ``pattern`` matches in ``path``, a folder or a shared beginning of paths, sorted.

    ``{000..146}`` and ``{a,b}`` name files that must all exist; ``*``, ``?`` and ``**`` match existing files.

    Raises UserError, with ``key`` of the configuration and ``kind`` of file, if there is none, or one is missing.
    """
    base = os.path.expanduser(path)
    if os.path.isfile(base):
        raise UserError(f"data.path={path} is a file: give its folder as data.path and its name as data.train")
    prefix = os.path.join(base, "") if is_url(base) or os.path.isdir(base) else base
    if is_file(prefix + pattern):  # tested before it is read as a pattern: a file name may contain brackets
        return [prefix + pattern]
    each = [_found(prefix, one) for one in expand_braces(pattern)]
    missing = [one for one, found in zip(expand_braces(pattern), each, strict=True) if not found]
    if missing and len(missing) < len(each):
        raise UserError(
            f"{key}={pattern}: {len(missing)} of {len(each)} files are not in data.path={path} "
            f"({shorten_list(missing)});"
            " fetch them, or give a pattern with *, which takes existing files"
        )
    if not missing:
        return _each_once(sorted(set(itertools.chain.from_iterable(each))))
    there = [] if is_url(base) else sorted(os.path.basename(name) for name in glob.glob(glob.escape(prefix) + "*"))
    if not there and not is_url(base) and not os.path.isdir(base):
        raise UserError(f"data.path={path} does not exist ({os.path.abspath(base)}): give the {kind} files' folder")
    none = "; data.test=null goes without" if key == "data.test" else ""
    holds = "" if is_url(base) else f", which holds {shorten_list(there)}"
    raise UserError(f"{key}={pattern} matches no file in data.path={path}{holds}{none}")


def expand_braces(pattern: str) -> list[str]:
    """Expands ``a-{00..02}.{x,y}`` to a-00.x, a-00.y, a-01.x, …; numbers keep the width of the first.

    Raises UserError, before making any name, if there would be none, or more than :data:`MOST_NAMES`.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)  # alternating: text between braces, text in braces
    options = [_options(part) if place % 2 else range(1) for place, part in enumerate(parts)]
    count = math.prod(map(len, options))
    if not 0 < count <= MOST_NAMES:
        many = "no name: a range counts up, {0..9}" if not count else f"{count:,} names, more than {MOST_NAMES:,}"
        raise UserError(f"the pattern {pattern} stands for {many}; give fewer, or a pattern with *")
    made = ([part] if place % 2 == 0 else _alternatives(part) for place, part in enumerate(parts))
    return ["".join(chosen) for chosen in itertools.product(*made)]


def _options(braces: str) -> Sequence[Any]:
    """Returns a sequence of the alternatives in the braces; a range is counted without being made."""
    span = _RANGE.fullmatch(braces)
    if span is None:
        return braces.split(",")
    first, last = (int(digits[-19:]) if len(digits.lstrip("0")) < 19 else 10**18 for digits in span.groups())
    return range(first, last + 1)


def _alternatives(braces: str) -> list[str]:
    options = _options(braces)
    if isinstance(options, range):
        width = braces.index(".")
        return [f"{number:0{width}}" for number in options]
    return list(options) if len(options) > 1 else [f"{{{braces}}}"]  # a single option: the braces are part of a name


@lru_cache(_OPEN_FILES)
def _open_file(path: str) -> IO[bytes]:
    return open_regular(path)


def _stamp(path: str) -> list[Any]:
    if not is_url(path):
        status = require_regular(path)
        return [path, status.st_size, status.st_mtime_ns]
    info = _ask_filesystem(path, lambda system, inside: system.info(inside))
    version = next((info[key] for key in _VERSIONS if key in info), "")
    return [path, int(info["size"] or 0), str(version)]


def is_file(path: str) -> bool:
    if not is_url(path):
        return os.path.isfile(path)
    return bool(_ask_filesystem(path, lambda system, inside: system.isfile(inside)))


def _each_once(paths: list[str]) -> list[str]:
    """Keeps the first name of each file, whatever links lead to it; prints what is dropped."""
    if any(map(is_url, paths)):
        return paths
    kept: dict[tuple[int, int], str] = {}
    for path in paths:
        status = os.stat(path)
        kept.setdefault((status.st_dev, status.st_ino), path)
    again = [shown_path(path) for path in paths if path not in {*kept.values()}] if len(kept) < len(paths) else []
    if again:
        print(
            f"data: {len(again)} names lead to files that others name already, and are left out: {shorten_list(again)}"
        )
    return [*kept.values()]


def _found(prefix: str, pattern: str) -> list[str]:
    if not is_url(prefix):
        if os.path.isfile(prefix + pattern):
            return [prefix + pattern]
        return [one for one in _globbed(prefix, pattern) if os.path.isfile(one)]
    if not glob.has_magic(pattern):
        return [prefix + pattern] if is_file(prefix + pattern) else []
    return _ask_filesystem(
        glob.escape(prefix) + pattern,
        lambda system, inside: [str(system.unstrip_protocol(one)) for one in system.glob(inside)],
    )


def _globbed(prefix: str, pattern: str) -> list[str]:
    """Matches like ``glob.glob``, but ``**`` enters each folder once: glob follows a link to a parent 40 times."""
    if "**" not in pattern:
        return glob.glob(glob.escape(prefix) + pattern)
    base = os.path.dirname(prefix) or "."
    wanted = glob.escape(prefix[len(os.path.join(base, "")) :] if os.path.dirname(prefix) else prefix) + pattern
    left_out: LeftOut = {}
    names = [
        os.path.normpath(os.path.join(folder.inside, name))
        for folder in walk(Path(base), left_out)
        for name in folder.names
    ]
    parts = wanted.split("/")
    return [os.path.join(base, name) for name in names if _fits(name.split(os.sep), parts)]


def _fits(name: list[str], pattern: list[str]) -> bool:
    """Checks whether a path matches a pattern, in which ``**`` stands for any number of folders."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        rest = pattern[1:] or ["*"]
        return any(_fits(name[skipped:], rest) for skipped in range(len(name)))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _fits(name[1:], pattern[1:])


def _ask_filesystem(url: str, question: Callable[[Any, str], _Result]) -> _Result:
    """Asks a store; raises FileNotFoundError, and UserError in place of any other error."""
    system, inside = _system(url)
    try:
        return question(system, inside)
    except FileNotFoundError:
        raise
    except Exception as error:  # every store raises its own errors: no network, no credentials, no such bucket
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{url} cannot be reached ({reason}): mend the address, or what the store asks for") from error


def _system(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL and the path inside it; fsspec keeps one file system per kind and process."""
    try:
        from fsspec.core import url_to_fs

        system, inside = url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package is not installed, or there is no such store
        raise UserError(
            f"{url} cannot be read ({one_line(error)}): pip install 'unlabeled[remote]', or copy it"
        ) from error
    return system, str(inside)

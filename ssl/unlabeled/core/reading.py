"""Opens only regular files for reading: a FIFO, a socket or a device could block or never end."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from unlabeled.core.escaping import escaped
from unlabeled.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_LONGEST = 400  # characters of a path in a message
_OF_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


def refuse_fault_of_machine(name: str, error: Exception) -> None:
    """Raises UserError where a file could not be read for no fault of its own, such as too many open files."""
    if isinstance(error, OSError) and (error.errno in _OF_MACHINE or isinstance(error, ConnectionError | TimeoutError)):
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise UserError(f"{name}: {reason}: not the file's fault; mend it, and the same command goes on") from error


def kind_of(mode: int) -> str | None:
    """Names the type of a file by its ``st_mode``; None for a regular one."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def require_regular(path: str | Path) -> os.stat_result:
    """Returns the status of a regular file, links followed, without opening it.

    Raises:
        NotRegular: it is a folder, a FIFO, a socket or a device.
        OSError: it does not exist, or its status cannot be read.
    """
    status = os.stat(_possible(path))
    kind = kind_of(status.st_mode)
    if kind is not None:
        raise NotRegular(path, kind)
    return status


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file for reading bytes; never waits for a FIFO.

    Raises:
        NotRegular: it is a folder, a FIFO, a socket or a device.
        OSError: it cannot be opened.
    """
    descriptor = os.open(_possible(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = kind_of(os.fstat(descriptor).st_mode)
    if kind is not None:
        os.close(descriptor)
        raise NotRegular(path, kind)
    return open(descriptor, "rb")


def _possible(path: str | Path) -> str | Path:
    """Returns the path. Raises FileNotFoundError for one with a NUL, for which Python raises a ValueError."""
    if "\0" in os.fspath(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    return path


def read_bytes(path: str | Path) -> bytes:
    """Reads a regular file whole. Raises OSError, NotRegular among them."""
    with open_regular(path) as file:
        return file.read()


def read_utf8(path: str | Path, errors: str = "strict") -> str:
    """Reads the text of a regular file, with ``errors`` as in ``bytes.decode``. Raises OSError and ValueError."""
    return read_bytes(path).decode("utf-8", errors)


def read_text(path: str | Path, given: str, most: int = 2**30) -> str:
    """Reads the text of a regular file in UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        given: the key and value that name it; the error begins with them.
        most: largest allowed size, bytes.

    Raises:
        UserError: it is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > most:
                raise UserError(f"{given}: {shown_path(path)} has more than {most:,} bytes; give a text file")
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{given}: byte {error.start:,} is no UTF-8; save the list as UTF-8") from error
    except FileNotFoundError as error:
        raise UserError(f"{given}: no such file") from error
    except OSError as error:
        raise UserError(f"{given}: {error.strerror or error}; give a text file that can be read") from error


def shown_path(path: str | bytes | Path) -> str:
    """Returns a path as :func:`unlabeled.core.escaping.shown` does; shortens a very long one in the middle."""
    line = escaped(os.fsdecode(path))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]}…{line[-_LONGEST // 2 :]}"


def name_inside(name: Any, given: str) -> str:
    """Returns the name of a file that another file contains, if it is below the folder of that file.

    Raises:
        UserError: it is not text, is absolute, or leads out of the folder; ``given`` is the file that contains it.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [""]
    if not all(parts) or ".." in parts or "\0" in parts[-1] or "::" in name or "://" in name:
        raise UserError(f"{given} names {shown_path(str(name))}, which is no file below its folder; make it anew")
    return str(name)


class NotRegular(OSError):
    """Raised if a file is not a regular one; the message is one line with its name and type."""

    def __init__(self, path: str | Path, kind: str) -> None:
        super().__init__(f"{shown_path(path)} is {kind}, not a regular file")
        self.kind = kind

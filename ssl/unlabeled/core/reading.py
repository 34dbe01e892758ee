"""Opens files to read: regular ones and no others, as a FIFO, a socket or a device would hang or never end."""

import os
import stat
from pathlib import Path
from typing import IO

from unlabeled.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str | None:
    """What a file is by its ``st_mode``, in words; None for a regular one."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def require_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file, links followed. It is not opened.

    Raises:
        NotRegular: it is a folder, a FIFO, a socket or a device.
        OSError: it is not there, or cannot be asked.
    """
    status = os.stat(path)
    kind = kind_of(status.st_mode)
    if kind is not None:
        raise NotRegular(path, kind)
    return status


def open_regular(path: str | Path) -> IO[bytes]:
    """A regular file, opened to be read as bytes; never waits for a FIFO.

    Raises:
        NotRegular: it is a folder, a FIFO, a socket or a device.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = kind_of(os.fstat(descriptor).st_mode)
    if kind is not None:
        os.close(descriptor)
        raise NotRegular(path, kind)
    return open(descriptor, "rb")


def read_text(path: str | Path, given: str, most: int = 2**30) -> str:
    """The text of a regular file in UTF-8, with or without a mark of byte order.

    Args:
        path: of the file.
        given: the key and value that name it, which the error begins with.
        most: bytes that it may have.

    Raises:
        UserError: it is missing, no regular file, larger, or no UTF-8.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > most:
                raise UserError(f"{given}: {shown(path)} has more than {most:,} bytes; give a text file")
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{given}: byte {error.start:,} of {shown(path)} is no UTF-8; save the file as UTF-8, or give a text file"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{given}: no such file") from error
    except OSError as error:
        raise UserError(f"{given}: {error.strerror or error}; give a text file that can be read") from error


def shown(path: str | bytes | Path) -> str:
    """A path as text that can be printed: bytes that are no UTF-8, control characters and line breaks are escaped."""
    text = os.fsdecode(path)
    escaped = text.encode("utf-8", "backslashreplace").decode() if not text.isprintable() else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)


class NotRegular(OSError):
    """What should be a regular file is something else: one line that names it and says what it is."""

    def __init__(self, path: str | Path, kind: str) -> None:
        super().__init__(f"{shown(path)} is {kind}, not a regular file")
        self.kind = kind

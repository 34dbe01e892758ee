"""Opens all files that are written: checks them before the work, writes them whole or not at all.

If something cannot be written, the error is one line with its path (:class:`Unwritable`), and the results so far are
written to a temporary folder (:func:`kept_anyway`).
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from unlabeled.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

T = TypeVar("T")
LONGEST = 255  # bytes of a name, on the usual file systems


class Unwritable(UserError, OSError):
    """Raised if a file or folder cannot be written; the message is one line with the path and the reason."""


def write_atomic(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Writes a file; if writing is killed or fails, the old file stays.

    Args:
        path: its folder is made if it is missing; a link is followed.
        content: text is written as UTF-8, with escapes for what is not, e.g. in file names.
        sync: whether to wait until it is on the disk, so that after a power loss the old or the new file is there.

    Raises:
        Unwritable: it cannot be written.
    """
    with replacing(path, sync) as unfinished:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


def save_plot(path: Path, figure: "Figure") -> None:
    """Writes a plot as PNG. Raises Unwritable."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")


def save_picture(path: Path, picture: "Image") -> None:
    """Writes a picture as PNG. Raises Unwritable."""
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")


def save_tensors(path: Path, content: Any) -> None:
    """Writes by ``torch.save``; the content does not depend on the file's name. Raises Unwritable."""
    import torch

    with replacing(path) as unfinished, unfinished.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's error for a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def save_safetensors(path: Path, tensors: "Mapping[str, Tensor]", notes: dict[str, str] | None = None) -> None:
    """Writes by safetensors, but with normal permissions: its own files only the owner may read. Raises Unwritable."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as unfinished:
        try:
            save_file(dict(tensors), unfinished, notes)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def save_arrays(path: Path, arrays: "Mapping[str, np.ndarray]") -> None:
    """Writes NumPy arrays by name as an uncompressed ``.npz``. Raises Unwritable."""
    import numpy as np

    with replacing(path, sync=False) as unfinished, unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def save_by(path: Path, write: "Callable[[IO[bytes]], object]") -> None:
    """Writes what ``write`` puts into the open file that it gets. Raises Unwritable."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        write(file)


def save_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines, each with its end, as they come: a table that memory need not hold. Raises Unwritable."""
    with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        file.writelines(lines)


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Gives an empty file beside ``path`` to fill; it replaces ``path`` at the end, or is deleted after an error.

    Raises:
        Unwritable: the system refuses one of these steps.
    """
    with one_line(path):
        target = _target(path)
        _make(target.parent)
        unfinished = target.with_name(f".{target.name[:60]}.{uuid4().hex[:8]}.tmp")
        try:
            unfinished.touch(exist_ok=False)
            mode = unfinished.stat().st_mode
            yield unfinished
            if sync:
                _sync(unfinished)
            unfinished.chmod(mode)
            os.replace(unfinished, target)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """Makes the folder, with its parents, if it is missing. Raises Unwritable."""
    with one_line(folder):
        _make(folder)
    return folder


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file. Raises Unwritable; the file may then end in an incomplete line."""
    with one_line(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turns errors of the system inside the block into an :class:`Unwritable` of this path."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({reason(error)})") from error


def reason(error: OSError) -> str:
    """Returns the system's message, without number and path."""
    return " ".join((error.strerror or str(error)).split())


def check_folder(key: str, folder: Path, names: Iterable[str] = ()) -> None:
    """Checks before the work that its results can be written; leaves nothing behind and makes no folder.

    Args:
        key: the key that gives the folder, for the message.
        folder: may not exist yet.
        names: of files that will be written there.

    Raises:
        Unwritable: a file is in the place of a folder or the other way round, a link has no target, or no file can be
            made there.
    """
    obstacle = _obstacle(folder) or next(filter(None, (_obstacle_to_file(folder / name) for name in names)), None)
    if obstacle:
        raise Unwritable(f"{key}={folder}: {obstacle}; give the name of a folder that can be written, which may be new")


def check_file(key: str, path: Path) -> None:
    """Checks a single file, as :func:`check_folder` does."""
    obstacle = _obstacle_to_file(path)
    if obstacle:
        raise Unwritable(f"{key}={path}: {obstacle}; give the name of a file that can be written, which may be new")


def kept_anyway(folder: Path, write: Callable[[Path], T]) -> T:
    """Writes results into a folder, or if that fails into a temporary one, so that they are not lost.

    Args:
        folder: for the results.
        write: fills the folder that it gets, by the functions above.

    Raises:
        Unwritable: ``folder`` cannot be written; the message names the folder that has the results instead.
    """
    try:
        return write(folder)
    except Unwritable as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="unlabeled-"))
        try:
            write(elsewhere)
        except Unwritable as second:
            raise Unwritable(f"{error}, and {second}; TMPDIR=… names another temporary folder") from error
        raise Unwritable(f"{error}; what was computed is in {elsewhere}") from error


def _obstacle(folder: Path) -> str | None:
    """Returns why no file can be put into a folder, which may not exist yet; None if one can."""
    try:
        blocked = _why_not_a_folder(folder)
        if blocked:
            return blocked
        nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"\0")
        if any(len(os.fsencode(name)) > LONGEST for name in folder.parts):  # of folders that do not exist yet
            return os.strerror(errno.ENAMETOOLONG)
        os.stat(folder)
    except FileNotFoundError as error:
        return None if error.filename is not None and Path(error.filename) == folder else reason(error)
    except ValueError as error:  # a NUL in the name
        return str(error)
    except OSError as error:
        return reason(error)
    return None


def _obstacle_to_file(path: Path) -> str | None:
    try:
        if len(os.fsencode(path.name)) > LONGEST:
            return os.strerror(errno.ENAMETOOLONG)
        return _obstacle(_target(path).parent)
    except (OSError, ValueError) as error:
        return reason(error) if isinstance(error, OSError) else str(error)


def _why_not_a_folder(folder: Path) -> str | None:
    for each in (folder, *folder.parents):
        if each.is_symlink() and not each.exists():
            return f"{each} is a link to {os.readlink(each)}, which is not there"
        if each.exists():
            return None if each.is_dir() else f"{each} is {'a file' if each.is_file() else 'no folder'}"
    return None


def _target(path: Path) -> Path:
    """Returns the target of a link. Raises OSError for a folder, a device or a pipe, which must not be replaced."""
    try:
        target = path.resolve()
    except RuntimeError as error:  # of Python before 3.13
        raise OSError(f"{path} is a link to itself") from error
    if path.is_symlink() and not target.parent.exists():
        raise OSError(f"{path} is a link to {os.readlink(path)}, which is not there")
    if target.is_dir():
        raise OSError(f"{path} is a folder")
    if target.exists() and not target.is_file():
        raise OSError(f"{path} is no regular file")
    return target


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OSError(_why_not_a_folder(folder) or reason(error)) from error


def _sync(path: Path) -> None:
    """Waits until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

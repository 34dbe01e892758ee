"""The images of a run: any change of the files is noticed, and a copy elsewhere is the same."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.sources.test_folder_source import put
from unlabeled.data import identity
from unlabeled.data.identity import Identity, changes, identity_of, read_identity
from unlabeled.data.source import Source
from unlabeled.data.sources.digits import digits
from unlabeled.data.sources.folder import folder


def of(path: Path, before: Identity | None = None) -> Identity:
    found = identity_of(folder(str(path), image_size=4).train, before)
    assert found is not None
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    put(tmp_path, *(f"data/{name}.png" for name in ("a/1", "a/2", "b/3", "b/4")))
    return tmp_path / "data"


def edit(path: Path) -> None:
    """Another byte in the middle; size and time of writing stay as they were."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange(root: Path) -> None:
    (root / "a/1.png").rename(root / "x")
    (root / "b/3.png").rename(root / "a/1.png")
    (root / "x").rename(root / "b/3.png")


def add_one(root: Path) -> None:
    put(root, *["x/0.png"] * 9, "b/5.png")
    shutil.rmtree(root / "x")


CHANGES: dict[str, Callable[[Path], object]] = {
    "1 file added (b/5.png)": add_one,
    "1 file removed (b/4.png)": lambda root: (root / "b/4.png").unlink(),
    "1 file renamed (a/2.png is b/2.png)": lambda root: (root / "a/2.png").rename(root / "b/2.png"),
    "1 file edited (b/3.png)": lambda root: edit(root / "b/3.png"),
    "2 files exchanged (a/1.png, b/3.png)": exchange,
}


@pytest.mark.parametrize("words", CHANGES)
def test_each_change_of_a_file_is_noticed_and_named(images: Path, words: str) -> None:
    before = of(images)
    CHANGES[words](images)
    now = of(images, before)
    assert now.digest != before.digest
    assert changes(before, now) == words
    assert of(images).digest == now.digest  # read anew it is the same


@pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copy2])
def test_a_copy_elsewhere_is_the_same_whatever_its_times(
    images: Path, tmp_path: Path, copy: Callable[[str, str], object]
) -> None:
    before = of(images)
    shutil.copytree(images, tmp_path / "elsewhere" / "deep", copy_function=copy)
    assert of(tmp_path / "elsewhere" / "deep", before).digest == before.digest
    edit(tmp_path / "elsewhere" / "deep" / "a" / "1.png")
    assert of(tmp_path / "elsewhere" / "deep", before).digest != before.digest


def test_files_that_have_not_changed_are_not_read_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of(images).write(tmp_path / "kept")
    before = read_identity(tmp_path / "kept")
    read: list[str] = []
    parts = identity._parts
    monkeypatch.setattr(identity, "_parts", lambda path, size: read.append(path) or parts(path, size))  # type: ignore[func-returns-value]
    assert before is not None
    assert of(images, before).digest == before.digest
    assert read == []
    os.utime(images / "a/2.png")
    assert of(images, before).digest == before.digest
    assert read == [str(images / "a/2.png")]


@pytest.mark.parametrize("size", [0, 1, identity.WHOLE, identity.WHOLE + 1, 2**20, 2**27])
def test_of_a_large_file_samples_from_its_first_to_its_last_byte_are_read(tmp_path: Path, size: int) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)
    sizes = [len(part) for part in identity._parts(str(tmp_path / "file"), size)]
    assert sum(sizes) == (size if size <= identity.WHOLE else {2**27: 64}.get(size, 4) * 4096)
    found = {identity._hash((str(tmp_path / "file"), size))}
    for place in {0, size - 1} if size else ():
        with (tmp_path / "file").open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        found.add(identity._hash((str(tmp_path / "file"), size)))
    assert len(found) == 1 + len({0, size - 1} if size else ())


def test_images_in_memory_are_known_by_their_pixels_and_labels() -> None:
    one, other = (digits(8).train for _ in range(2))
    first = identity_of(one)
    assert first is not None
    same = identity_of(other)
    assert same is not None
    assert first.digest == same.digest
    other.labels[0] += 1
    changed = identity_of(other)
    assert changed is not None
    assert changes(first, changed) == "labels, or their order, differ"


def test_of_a_foreign_source_nothing_is_known() -> None:
    class Foreign:
        def __init__(self, source: Source) -> None:
            self.classes, self.labels = source.classes, source.labels

        def __len__(self) -> int:
            return len(self.labels)

    assert identity_of(Foreign(digits(8).train)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"{}", b"ARROW1\0\0" + b"\xff" * 300])
def test_a_damaged_file_of_an_earlier_session_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kept").write_bytes(content)
    assert read_identity(tmp_path / "kept") is None
    os.remove(tmp_path / "kept")
    os.mkfifo(tmp_path / "kept")
    assert read_identity(tmp_path / "kept") is None

"""Every reader of data against files that are cut, empty, foreign or hostile: a line or a count, never a traceback."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from unlabeled.data.lists.index import load_or_build
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.data.sources.folder import FolderSource, folder
from unlabeled.data.sources.huggingface import huggingface
from unlabeled.data.sources.litdata import litdata
from unlabeled.data.sources.parquet import parquet
from unlabeled.data.sources.shards import shards
from unlabeled.errors import UserError

Write = Callable[[Path], Path]  # makes a data set in a folder, and says which of its files is damaged


def png(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_image(root: Path) -> Path:
    (root / "a").mkdir()
    (root / "a" / "0.png").write_bytes(png())
    (root / "a" / "1.png").write_bytes(png(1))
    return root / "a" / "1.png"


def write_csv(root: Path) -> Path:
    write_image(root)
    (root / "list.csv").write_text("path,label\na/0.png,x\na/1.png,y\n")
    return root / "list.csv"


def write_text_list(root: Path) -> Path:
    write_image(root)
    (root / "list.txt").write_text("a/0.png\na/1.png\n")
    return root / "list.txt"


def write_list_parquet(root: Path) -> Path:
    write_image(root)
    pq.write_table(pa.table({"path": ["a/0.png", "a/1.png"], "label": [0, 1]}), root / "list.parquet")
    return root / "list.parquet"


def write_parquet(root: Path) -> Path:
    pq.write_table(pa.table({"image": [png(), png(1)], "label": [0, 1]}), root / "train.parquet")
    return root / "train.parquet"


def write_shard(root: Path) -> Path:
    with tarfile.open(root / "train.tar", "w") as file:
        for name, data in (("a.png", png()), ("a.cls", b"0"), ("b.png", png(1)), ("b.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return root / "train.tar"


def write_arrow(root: Path) -> Path:
    (root / "train").mkdir()
    table = pa.table({"image": pa.array([png(), png(1)], pa.binary()), "label": [0, 1]})
    with pa.OSFile(str(root / "train" / "data.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    (root / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return root / "train" / "data.arrow"


def write_arrow_state(root: Path) -> Path:
    write_arrow(root)
    return root / "train" / "state.json"


def write_chunk(root: Path) -> Path:
    (root / "train").mkdir()
    items = [len(data).to_bytes(4, "little") + (8).to_bytes(4, "little") + data + bytes(8) for data in (png(), png(1))]
    starts = [4 + 4 * 3, 16 + len(items[0]), 16 + len(items[0]) + len(items[1])]
    content = (2).to_bytes(4, "little") + b"".join(start.to_bytes(4, "little") for start in starts) + b"".join(items)
    (root / "train" / "chunk-0-0.bin").write_bytes(content)
    spec = json.dumps([1, {"type": "builtins.dict", "context": '["image", "label"]', "children_spec": [{}, {}]}])
    config = {"data_format": ["jpeg", "int"], "data_spec": spec, "compression": None}
    (root / "train" / "index.json").write_text(
        json.dumps({"chunks": [{"filename": "chunk-0-0.bin"}], "config": config})
    )
    return root / "train" / "chunk-0-0.bin"


def write_chunk_index(root: Path) -> Path:
    write_chunk(root)
    return root / "train" / "index.json"


READERS: dict[str, tuple[Write, Callable[[Path], Splits]]] = {
    "image": (write_image, lambda root: folder(str(root), image_size=4)),
    "csv": (write_csv, lambda root: folder(str(root / "list.csv"), image_size=4)),
    "txt": (write_text_list, lambda root: folder(str(root / "list.txt"), image_size=4)),
    "list parquet": (write_list_parquet, lambda root: folder(str(root / "list.parquet"), image_size=4)),
    "parquet": (write_parquet, lambda root: parquet(str(root), test=None, image_size=4)),
    "shard": (write_shard, lambda root: shards(str(root), image_size=4)),
    "arrow": (write_arrow, lambda root: huggingface(str(root), image_size=4)),
    "arrow state": (write_arrow_state, lambda root: huggingface(str(root), image_size=4)),
    "chunk": (write_chunk, lambda root: litdata(str(root), image_size=4)),
    "chunk index": (write_chunk_index, lambda root: litdata(str(root), image_size=4)),
}


def outcome(read: Callable[[Path], Splits], root: Path) -> str:
    """Reads all and decodes all: "read", or the one line of the refusal; anything else is raised."""
    try:
        train = read(root).train
    except UserError as error:
        return one_line(error)
    for row in range(len(train)):
        try:
            train.decode(row)
        except CorruptImage as error:
            one_line(error)
    return "read"


def one_line(error: Exception) -> str:
    said = str(error)
    assert "\n" not in said
    assert len(said) < 3000
    return said


@pytest.fixture(autouse=True)
def _own_lists(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


FOREIGN = [
    b"",
    b"\0" * 600,
    b"text",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"config": {}, "chunks": 3}',
    b'{"_data_files": [{"filename": "../../../etc/passwd"}]}',
    b'{"_data_files": 7}',
    b'{"_data_files": [{}]}',
    b'{"chunks": [{"filename": "/etc/passwd"}], "config": {"data_format": ["jpeg"], "data_spec": "[1, {}]"}}',
    b'{"chunks": [], "config": {"data_format": [1], "data_spec": "{"}}',
    b"\xff\xfe" * 50,
    b"PAR1" + b"\xff" * 40 + b"PAR1",
    b"PAR1" + b"\0" * 8 + b"\xff\xff\xff\x7f" + b"PAR1",
    b"\xff\xff\xff\xff" * 30,
    b"ARROW1\0\0" + b"\xff" * 64,
    png()[:40],
    b"GIF89a" + b"\xff" * 40,
]


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_empty_foreign_or_hostile_is_a_line_or_a_count(kind: str, tmp_path: Path) -> None:
    write, read = READERS[kind]
    file = write(tmp_path)
    assert outcome(read, tmp_path) == "read"
    for content in FOREIGN:
        file.write_bytes(content)
        outcome(read, tmp_path)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_gone_or_a_fifo_a_folder_or_a_device_is_a_line_or_a_count(kind: str, tmp_path: Path) -> None:
    write, read = READERS[kind]
    file = write(tmp_path)
    for make in (
        lambda: None,
        lambda: os.mkfifo(file),
        lambda: file.mkdir(),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(file.name),
        lambda: file.symlink_to("nowhere"),
    ):
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        make()  # type: ignore[no-untyped-call]
        outcome(read, tmp_path)


@pytest.mark.parametrize("kind", READERS)
@settings(
    max_examples=40, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_a_file_with_any_piece_cut_out_or_overwritten_is_a_line_or_a_count(
    kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    write, read = READERS[kind]
    root = tmp_path_factory.mktemp("set")
    file = write(root)
    content = file.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 64)) | st.just(len(content)))
    put = data.draw(st.binary(max_size=8) | st.just(b"") | st.just(b"\xff" * (stop - start)))
    file.write_bytes(content[:start] + put + content[stop:])
    outcome(read, root)


@settings(max_examples=60, deadline=None, database=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
@example("[a]*?{0..9}.png")
@example("-rf")
@example("a\nb.png")
@example("\u202etxt.png")
def test_any_name_of_a_file_is_a_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.mktemp("set")
    (root / "a").mkdir()
    (root / "a" / f"x{name}.png").write_bytes(png(7))
    splits = folder(str(root), image_size=4)
    assert isinstance(splits.train, FolderSource)
    assert splits.train.encoded(0) == root / "a" / f"x{name}.png"
    assert int(splits.train.decode(0)[0, 0, 0]) == 7


@pytest.mark.parametrize("content", [*FOREIGN, None])
def test_a_kept_list_that_is_damaged_or_foreign_is_made_again_and_a_fifo_is_refused(
    content: bytes | None, tmp_path: Path
) -> None:
    def build() -> Any:
        return {"name": [b"x"]}, {"n": 1}

    load_or_build({"of": "x"}, str(tmp_path), lambda note: True, build)
    (file,) = tmp_path.iterdir()
    if content is None:
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UserError, match=r"^data\.index="):
            load_or_build({"of": "x"}, str(tmp_path), lambda note: True, build)
        return
    file.write_bytes(content)
    assert load_or_build({"of": "x"}, str(tmp_path), lambda note: True, build).text("name", 0) == b"x"

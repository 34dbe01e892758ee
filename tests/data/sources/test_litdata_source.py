"""Chunks of litdata: images and labels at their places, any field names, and one line for what cannot be read."""

import contextlib
import io
import json
import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from unlabeled.data.source import CorruptImage, Source
from unlabeled.data.sources.litdata import litdata
from unlabeled.errors import UserError


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def chunk(items: Sequence[Sequence[bytes]]) -> bytes:
    """As litdata 0.2.76 writes it: compared byte by byte with a chunk of its own while this was written."""
    packed = [struct.pack(f"<{len(item)}I", *map(len, item)) + b"".join(item) for item in items]
    first = 4 * (len(items) + 2)
    offsets = [first + sum(map(len, packed[:end])) for end in range(len(packed) + 1)]
    return struct.pack(f"<{len(offsets) + 1}I", len(items), *offsets) + b"".join(packed)


def number(value: int) -> bytes:
    return struct.pack("<q", value)


def write(folder: Path | str, chunks: list[bytes], formats: list[str], names: list[str] | None, **config: Any) -> None:
    context = None if names is None else json.dumps(names)
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "builtins.dict", "context": context, "children_spec": [leaf] * len(formats)}
    files = [{"filename": f"chunk-0-{number}.bin", "chunk_bytes": len(data)} for number, data in enumerate(chunks)]
    config = {"data_format": formats, "data_spec": json.dumps([1, spec]), "compression": None, **config}
    contents = {"index.json": json.dumps({"chunks": files, "config": config}).encode()}
    contents |= {str(file["filename"]): data for file, data in zip(files, chunks, strict=True)}
    for name, data in contents.items():
        with fsspec.open(f"{folder}/{name}", "wb", auto_mkdir=True) as file:
            file.write(data)


def usual(folder: Path | str, first: int = 0, **config: Any) -> list[bytes]:
    """Five items in two chunks, labels red mod 3, with a text of another length in each."""
    items = [(b"x" * red, png(red), number(red % 3)) for red in range(first, first + 5)]
    chunks = [chunk(items[:3]), chunk(items[3:])]
    write(folder, chunks, ["str", "bytes", "int"], ["name", "image", "label"], **config)
    return chunks


def reds(source: Source) -> list[int]:
    return [int(source.decode(index)[0, 0, 0]) for index in range(len(source))]


def refusal(folder: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        litdata(str(folder), image_size=4, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_items_of_all_chunks_come_in_order_with_labels_and_names(tmp_path: Path) -> None:
    usual(tmp_path / "train")
    usual(tmp_path / "val", first=7)
    splits = litdata(str(tmp_path), test="val", image_size=4)
    assert splits.test is not None
    assert (reds(splits.train), reds(splits.test)) == ([0, 1, 2, 3, 4], [7, 8, 9, 10, 11])
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0, 1, 2, 0, 1], [1, 2, 0, 1, 2])
    assert splits.train.classes == ["0", "1", "2"]
    assert splits.train.name(4) == f"{tmp_path}/train/chunk-0-1.bin row 1"
    assert splits.corrupt == []


def test_an_object_store_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    usual("memory://lit/train")
    for _ in range(2):
        source = litdata("memory://lit", image_size=4).train
        assert (reds(source), source.labels.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 0, 1])


def test_fields_are_found_by_kind_or_by_name_or_by_place(tmp_path: Path) -> None:
    item = (png(1), number(4), png(2), number(5))
    write(tmp_path, [chunk([item])], ["jpeg", "int", "image:png", "int"], None)
    for image, label, expected in (("0", "1", (1, 4)), ("2", "3", (2, 5)), ("2", "none", (2, -1))):
        source = litdata(str(tmp_path), train=".", image_size=4, image_field=image, label_field=label).train
        assert (reds(source)[0], int(source.labels[0])) == expected
    message = refusal(tmp_path, train=".", label_field="1")
    assert "data.image_field=null is not one field" in message
    assert message.endswith("there are 0: jpeg, 1: int, 2: image:png, 3: int")
    assert "data.label_field=null is not one field" in refusal(tmp_path, train=".", image_field="0")
    assert "data.image_field=1 is not one field" in refusal(tmp_path, train=".", image_field="1")
    assert "data.test=null" in refusal(tmp_path, test="x", label_field="none")
    write(tmp_path / "one", [chunk([(png(3),)])], ["jpeg"], ["picture"])
    source = litdata(str(tmp_path), train="one", image_size=4).train
    assert (reds(source), source.labels.tolist(), source.classes) == ([3], [-1], [])


def test_what_cannot_be_read_by_index_is_one_line(tmp_path: Path) -> None:
    usual(tmp_path / "a", compression="zstd")
    assert "compression=zstd cannot be read by index; optimize again without" in refusal(tmp_path, train="a")
    usual(tmp_path / "b", item_loader="ParquetLoader")
    assert "its items are no plain dict or tuple" in refusal(tmp_path, train="b")
    write(tmp_path / "c", [chunk([(png(0), number(0), b"more")])], ["bytes", "int"], ["image", "label"])
    assert "its items are not of the kind that index.json says" in refusal(tmp_path, train="c")
    usual(tmp_path / "d")
    (tmp_path / "d/chunk-0-1.bin").unlink()
    assert "data.train=d: a chunk that" in refusal(tmp_path, train="d")
    write(tmp_path / "e", [chunk([(png(0), number(-2))])], ["bytes", "int"], ["image", "label"])
    assert "chunk-0-0.bin row 0: label -2 is outside 0.." in refusal(tmp_path, train="e")
    write(tmp_path / "f", [], ["bytes", "int"], ["image", "label"])
    assert "lists no chunk" in refusal(tmp_path, train="f")
    assert refusal(tmp_path).startswith(f"data.train=train: {tmp_path}/train/index.json does not exist")


def test_every_cut_of_a_chunk_gives_the_whole_items_before_it_and_says_so(tmp_path: Path) -> None:
    first, second = usual(tmp_path / "train")
    ends = struct.unpack("<5I", first[:20])[2:]
    for length in range(0, len(first), 7):
        (tmp_path / "train/chunk-0-0.bin").write_bytes(first[:length])
        splits = litdata(str(tmp_path), image_size=4)
        assert reds(splits.train) == [*range(sum(end <= length for end in ends)), 3, 4], length
        (problem,) = splits.corrupt
        assert problem.startswith(f"{tmp_path}/train/chunk-0-0.bin: cut short at byte {length:,}; ")
    assert len(second) > 0


def test_a_kept_list_serves_until_a_chunk_changes_and_a_later_cut_costs_its_items(tmp_path: Path) -> None:
    usual(tmp_path / "train")
    place = str(tmp_path / "kept")
    source = litdata(str(tmp_path), image_size=4, index=place).train
    assert reds(litdata(str(tmp_path), image_size=4, index=place).train) == reds(source)
    os.truncate(tmp_path / "train/chunk-0-1.bin", 60)
    with pytest.raises(CorruptImage, match=r"chunk-0-1\.bin row 0: .* has been cut short since it was listed$"):
        source.decode(3)
    usual(tmp_path / "train", first=20)
    assert reds(litdata(str(tmp_path), image_size=4, index=place).train) == [20, 21, 22, 23, 24]
    assert len(list(Path(place).iterdir())) == 1


def test_any_flipped_bytes_of_a_chunk_are_one_line_or_left_out(tmp_path: Path) -> None:
    whole = bytearray(chunk([[png(red), number(red)] for red in range(6)]))
    draw = random.Random(0)
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(80)] = draw.randrange(256)
        write(tmp_path / "train", [bytes(content)], ["bytes", "int"], ["image", "label"])
        with contextlib.suppress(UserError):
            litdata(str(tmp_path), image_size=4)

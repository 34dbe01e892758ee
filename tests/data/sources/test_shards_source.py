"""Tar shards: which members are images, which labels they have, and what damage costs."""

import io
import multiprocessing
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image

from unlabeled.data.memory import decode_or_next
from unlabeled.data.module import DataModule
from unlabeled.data.source import CorruptImage, Source, Splits
from unlabeled.data.sources import records as stored
from unlabeled.data.sources.shards import shards
from unlabeled.errors import UserError


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def tar(members: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def records(start: int, stop: int) -> dict[str, bytes]:
    """Image n has red n and label n mod 3."""
    return {
        f"{number:03}.{end}": data
        for number in range(start, stop)
        for end, data in (("png", png(number)), ("cls", str(number % 3).encode()))
    }


def put(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        (folder / f"{name}.tar").write_bytes(data)


def opened(folder: Path | str, **given: Any) -> Splits:
    return shards(str(folder), image_size=4, **given)


def reds(source: Source) -> list[int]:
    return [int(source.decode(index)[0, 0, 0]) for index in range(len(source))]


def refusal(folder: Path | str, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(folder, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_records_of_all_shards_come_in_order_with_labels_and_names(tmp_path: Path) -> None:
    put(tmp_path, train_1=tar(records(3, 5)), train_0=tar(records(0, 3)), val=tar(records(7, 9)))
    splits = opened(tmp_path, test="val.tar")
    assert splits.test is not None
    assert (reds(splits.train), reds(splits.test)) == ([0, 1, 2, 3, 4], [7, 8])
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0, 1, 2, 0, 1], [1, 2])
    assert splits.train.labels.dtype == torch.int64
    assert splits.train.classes == splits.test.classes == ["0", "1", "2"]
    assert splits.train.name(3) == f"{tmp_path}/train_1.tar/003.png"
    assert splits.description == (
        f"5 train and 2 test images in 3 shards from {tmp_path}, 3 classes, whole images within 4 × 8 pixels"
    )
    assert splits.corrupt == []


def test_a_record_is_its_key_up_to_the_first_dot_and_gives_its_first_image_only(tmp_path: Path) -> None:
    members = {
        "x/a.json": b'{"y": 2}',  # before its image
        "x/a.PNG": png(1),
        "x/a.jpg": png(9),  # a second one of this record
        "x/b.seg.png": png(9),  # another kind of thing
        "x/b.jpeg": png(2),
        "x/b.json": b'{"y": null}',
        "y/b.webp": png(3),  # another folder, another record
        "y/b.json": b'{"y": "1", "z": 5}',
        "y/c.txt": b"no image",
        "y/c.json": b'{"y": 7}',
        "y/d.png": png(4),
    }
    put(tmp_path, train=tar(members))
    source = opened(tmp_path, labels="json:y").train
    assert (reds(source), source.labels.tolist()) == ([1, 2, 3, 4], [2, -1, 1, -1])
    assert opened(tmp_path, labels="none").train.labels.tolist() == [-1] * 4
    assert opened(tmp_path, labels="none").train.classes == opened(tmp_path, labels="cls").train.classes == []


def labelled(source: Source) -> list[tuple[int, int]]:
    return list(zip(reds(source), source.labels.tolist(), strict=True))


def test_members_of_a_record_may_stand_anywhere_and_in_any_letter_case(tmp_path: Path) -> None:
    images = {f"{n}.{end}": png(n) for n, end in ((1, "png"), (2, "PNG"), (3, "Png"))}
    labels = {f"{n}.{end}": str(n).encode() for n, end in ((3, "cls"), (1, "CLS"), (2, "Cls"))}
    for members in (images | labels, labels | images):
        put(tmp_path, train=tar(members))
        splits = opened(tmp_path)
        assert labelled(splits.train) == [(1, 1), (2, 2), (3, 3)]
        assert splits.left_out == {}


def test_a_key_that_comes_again_is_another_record(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, data in (("a.cls", b"0"), ("a.png", png(1)), ("b.png", png(2)), ("a.cls", b"1"), ("a.png", png(3))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    put(tmp_path, train=stream.getvalue())
    assert labelled(opened(tmp_path).train) == [(1, 0), (2, -1), (3, 1)]


def test_dots_within_names_are_part_of_them_but_for_kinds_that_stand_beside_images(tmp_path: Path) -> None:
    members = {
        "frame.1.5.png": png(1),
        "frame.1.5.cls": b"5",
        "frame.1.6.PNG": png(2),
        "frame.1.6.cls": b"6",
        "clip.v2.png": png(3),
        "clip.cls": b"7",
        "x.png": png(4),
        "x.seg.png": png(9),
        "y.seg.png": png(9),  # its record has lost its image
        "._x.png": b"of a Mac",
    }
    put(tmp_path, train=tar(members))
    splits = opened(tmp_path)
    assert labelled(splits.train) == [(1, 5), (2, 6), (3, 7), (4, -1)]
    assert splits.left_out == {
        "hidden members": {"count": 1, "examples": ["._x.png"]},
        "further images of a record": {"count": 2, "examples": ["x.seg.png", "y.seg.png"]},
    }


def test_members_without_an_extension_are_told_by_their_content_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    members = {"n01/1": png(1), "n01/1.cls": b"2", "README": b"text", "a.txt": b"a", "b.txt": b"b", "c.txt": b"c"}
    put(tmp_path, train_0=tar(members), train_1=tar({"d.txt": b"d", "e.cls": b"1", "f.tiff.bak": b""}))
    splits = opened(tmp_path)
    assert labelled(splits.train) == [(1, 2)]
    assert splits.left_out == {
        "members that are no image and no label": {"count": 6, "examples": ["README", "a.txt", "b.txt"]},
        "labels without an image": {"count": 1, "examples": ["e"]},
    }


@pytest.mark.parametrize(
    "record", [b"0 path=x\n", b"-9 size=1\n", b"99 size=-512\n", b"x path=y\n", b"13 size=-9999\n"]
)
def test_a_hostile_header_is_damage_and_does_not_hang(tmp_path: Path, record: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    header = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    put(tmp_path, train_0=tar({"a.png": png(1)})[:1024] + header + tar({"b.png": png(2)}))
    splits = opened(tmp_path)
    assert reds(splits.train) == [1]
    assert "damaged from byte" in splits.corrupt[0]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_beyond_ascii_are_read(tmp_path: Path, kind: int) -> None:
    name = "größe/" + "x" * 120
    put(tmp_path, train=tar({f"{name}.png": png(5), f"{name}.cls": b"0\n"}, kind))
    source = opened(tmp_path).train
    assert (reds(source), source.labels.tolist()) == ([5], [0])
    assert source.name(0) == f"{tmp_path}/train.tar/{name}.png"


def test_bad_labels_name_the_member_and_the_remedy(tmp_path: Path) -> None:
    for content in (b"cat", b"-1", b"1.5", b"", b"100000", b"\xff"):
        put(tmp_path, train=tar({"a.png": png(0), "a.cls": content}))
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path}/train.tar/a.cls: no class number")
        assert "data.labels=none" in message
    for content in (b"[1]", b"{", b'{"y": 0.5}', b'{"y": true}'):
        put(tmp_path, train=tar({"a.png": png(0), "a.json": content}))
        assert "train.tar/a.json: no class number" in refusal(tmp_path, labels="json:y")


def test_labels_beyond_the_classes_name_the_image_and_the_key(tmp_path: Path) -> None:
    put(tmp_path, train=tar(records(0, 2)), val=tar(records(0, 3)))
    message = refusal(tmp_path, test="val.tar")
    assert message.startswith(f"{tmp_path}/val.tar/002.png: label 2 is outside 0..1")
    assert message.endswith("data.num_classes=3 or more")
    assert len(opened(tmp_path, test="val.tar", num_classes=5).train.classes) == 5
    assert "label 1 is outside 0..0" in refusal(tmp_path, num_classes=1)


def test_bad_values_are_refused_before_a_shard_is_looked_for() -> None:
    assert refusal("/nowhere", labels="class") == "data.labels=class is not known: give cls, json:FIELD or none"
    assert refusal("/nowhere", labels="json:").startswith("data.labels=json:")
    assert refusal("/nowhere", num_classes=0).startswith("data.num_classes=0 is not")
    assert "data.test=null" in refusal("/nowhere", labels="none", test="x.tar")
    assert "data.path=/nowhere does not exist" in refusal("/nowhere")


def test_a_shard_for_both_training_and_testing_is_refused(tmp_path: Path) -> None:
    put(tmp_path, train=tar(records(0, 2)))
    assert "train.tar is matched by data.train and by data.test" in refusal(tmp_path, test="*.tar")


def test_every_cut_of_a_shard_gives_the_whole_records_before_it_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tar(records(0, 4))
    with tarfile.open(fileobj=io.BytesIO(whole)) as file:
        ends = [member.offset_data + member.size for member in file if member.name.endswith("png")]
        last = file.offset
    for length in range(64, last, 64):
        put(tmp_path, train=whole[:length], train_b=tar(records(7, 9)))
        splits = opened(tmp_path)
        assert reds(splits.train) == [*range(sum(end <= length for end in ends)), 7, 8], length
        (problem,) = splits.corrupt
        assert problem.startswith(f"{tmp_path}/train.tar: ")
        assert ("cut short" in problem) or length == 0
        assert f"shards: {problem}" in capsys.readouterr().out
    put(tmp_path, train=whole[: last + 512], train_b=tar(records(7, 9)))
    assert opened(tmp_path).corrupt == []


def test_a_damaged_header_and_other_files_are_said_and_cost_what_lies_behind(tmp_path: Path) -> None:
    data = bytearray(tar(records(0, 4)))
    data[data.index(b"002.png")] = 0xFF  # its checksum does not hold any more
    put(tmp_path, train_a=bytes(data), train_b=b"", train_c=b"text" * 300, train_d=b"\x1f\x8b" + b"x" * 999)
    splits = opened(tmp_path)
    assert reds(splits.train) == [0, 1]
    assert [problem.removeprefix(f"{tmp_path}/train_") for problem in splits.corrupt] == [
        f"a.tar: damaged from byte {data.index(b'02.png') - 1:,} on; 4 whole members are used",
        "b.tar: empty; 0 whole members are used",
        "c.tar: no tar file; 0 whole members are used",
        "d.tar: compressed, unpack it first; 0 whole members are used",
    ]
    assert DataModule(splits, 2, 0, memory_gib=1, seed=0).corrupt == splits.corrupt


def test_shards_without_any_image_are_refused_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, train=tar({"a.txt": b"x"}))
    assert refusal(tmp_path).startswith(
        f"data.train=train*.tar: no image in {tmp_path}/train.tar: 1 members that are no image and no label (a.txt);"
    )
    put(tmp_path, train=b"text" * 300)
    assert "train.tar: no tar file" in refusal(tmp_path)


def test_a_kept_list_serves_until_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlabeled.data.sources import shards as module

    scan, scanned = module._scan_shard, list[str]()
    monkeypatch.setattr(module, "_scan_shard", lambda path, labels: scanned.append(path) or scan(path, labels))  # type: ignore[func-returns-value]
    put(tmp_path, train=tar(records(0, 2))[:-11_000], train_b=tar(records(2, 4)))
    first, again = (opened(tmp_path, index=str(tmp_path / "kept")) for _ in range(2))
    assert len(scanned) == 2
    assert (reds(again.train), again.train.labels.tolist()) == (reds(first.train), first.train.labels.tolist())
    assert len(pickle.dumps(again.train)) < 2000
    assert reds(pickle.loads(pickle.dumps(again.train))) == reds(first.train)
    put(tmp_path, train=tar(records(5, 7)))
    assert reds(opened(tmp_path, index=str(tmp_path / "kept")).train) == [5, 6, 2, 3]
    assert opened(tmp_path, index=str(tmp_path / "kept"), labels="none").train.classes == []


def test_a_shard_that_is_gone_or_cut_after_it_was_listed_costs_its_records_and_no_more(tmp_path: Path) -> None:
    put(tmp_path, train_0=tar(records(0, 2)), train_1=tar(records(2, 4)), train_2=tar(records(4, 6)))
    source = opened(tmp_path).train
    (tmp_path / "train_0.tar").unlink()
    os.truncate(tmp_path / "train_1.tar", 700)  # in the midst of its second record
    with pytest.raises(CorruptImage, match=r"^.*/train_0\.tar/001\.png: .*/train_0\.tar is gone$"):
        source.decode(1)
    with pytest.raises(CorruptImage, match=r"^.*003\.png: .*/train_1\.tar has been cut short since it was listed$"):
        source.decode(3)
    assert [decode_or_next(source, index)[1] for index in range(6)] == [2, 2, 2, 4, 4, 5]
    (tmp_path / "train_2.tar").rename(tmp_path / "elsewhere")  # still open: this process goes on
    assert decode_or_next(source, 3)[1] == 4
    afresh = opened(tmp_path, train="elsewhere").train
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(UserError, match="none of the 2 images can be decoded"):
        decode_or_next(afresh, 0)


def test_workers_read_what_this_process_reads(tmp_path: Path) -> None:
    put(tmp_path, train=tar(records(0, 5)))
    source = opened(tmp_path).train
    assert reds(source) == [0, 1, 2, 3, 4]  # the file is open when the worker is forked
    loader = torch.utils.data.DataLoader(
        Decoded(source), batch_size=None, num_workers=1, multiprocessing_context=multiprocessing.get_context("fork")
    )
    assert [int(image[0, 0, 0]) for image in loader] == [0, 1, 2, 3, 4]


class Decoded(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.source.decode(index)


def test_shards_of_an_object_store_are_listed_once_and_read_by_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = "memory://bucket/shards"
    for number in range(3):
        with fsspec.open(f"{base}/train-{number}.tar", "wb") as file:
            file.write(tar(records(2 * number, 2 * number + 2)))
    for pattern in ("train-*.tar", "train-{0..2}.tar"):
        source = opened(base, train=pattern).train
        assert (reds(source), source.labels.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2])
    assert source.name(5) == f"{base}/train-2.tar/005.png"
    assert len(list((tmp_path / "unlabeled").iterdir())) == 2
    fsspec.filesystem("memory").rm("/bucket/shards/train-1.tar")
    with pytest.raises(CorruptImage, match=r"train-1\.tar is gone"):
        source.decode(2)


def test_a_fault_of_the_disk_that_passes_is_an_error_and_no_list_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, train=tar(records(0, 20)))
    index = tmp_path / "index"

    def broken(*given: Any) -> Any:
        raise OSError(110, "Connection timed out")

    with monkeypatch.context() as patch:
        patch.setattr("unlabeled.data.sources.shards.members", broken)
        with pytest.raises(UserError, match=r"train.tar: cannot be read \(.*timed out\)"):
            opened(tmp_path, index=str(index))
    assert len(opened(tmp_path, index=str(index)).train) == 20


def test_shards_without_labels_are_trained_on_and_their_test_split_is_named_and_not_judged(tmp_path: Path) -> None:
    unlabelled = {name: data for name, data in records(0, 4).items() if name.endswith(".png")}
    put(tmp_path, train=tar(unlabelled), test=tar(unlabelled))
    splits = opened(tmp_path, test="test.tar")
    assert (splits.test, list(splits.unjudged)) == (None, ["test"])
    assert splits.warnings == ["the test split is not tested on: the training images have no labels"]


def test_a_server_that_ignores_byte_ranges_is_blamed_and_not_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, train=tar(records(0, 2)))
    source = opened(tmp_path).train
    whole = (tmp_path / "train.tar").read_bytes()
    monkeypatch.setattr(stored, "read_range", lambda *given: whole)
    with pytest.raises(UserError, match=r"train\.tar: its server sends whole files"):
        source.decode(0)

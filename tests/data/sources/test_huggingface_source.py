"""Data sets that save_to_disk wrote: images at their places in arrow files, labels, names, and what is refused."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from unlabeled.data.source import CorruptImage, Source
from unlabeled.data.sources.huggingface import huggingface
from unlabeled.errors import UserError


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(
    folder: Path,
    files: list[list[int | None]],
    names: list[str] | None = None,
    struct: bool = True,
    codec: str | None = None,
    **state: Any,
) -> None:
    """One split: each file's rows by their red value (None: no bytes), two to a record batch; labels are red mod 3."""
    folder.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
    note = {b"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    schema = pa.schema({"image": kind, "label": pa.int64()}, note)
    found = []
    for number, reds in enumerate(files):
        found.append({"filename": f"data-{number:05}-of-{len(files):05}.arrow"})
        images = [None if red is None else png(red) for red in reds]
        values = [{"bytes": image, "path": "x"} for image in images] if struct else images
        labels = [None if red is None else red % 3 for red in reds]
        table = pa.table({"image": pa.array(values, kind), "label": labels}, schema)
        options = pa.ipc.IpcWriteOptions(compression=codec)
        with (
            pa.OSFile(str(folder / found[-1]["filename"]), "wb") as out,
            pa.ipc.new_stream(out, schema, options=options) as writer,
        ):
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": found, **state}))


def reds(source: Source) -> list[int]:
    return [int(source.decode(index)[0, 0, 0]) for index in range(len(source))]


def refusal(folder: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        huggingface(str(folder), image_size=4, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("struct", [True, False])
def test_rows_of_all_files_come_in_order_with_labels_class_names_and_names(tmp_path: Path, struct: bool) -> None:
    write(tmp_path / "train", [[0, 1, 2, 3, 4], [], [5, 6]], ["ant", "bee", "cat"], struct)
    write(tmp_path / "val", [[8, 9, 10]], ["ant", "bee", "cat"], struct)
    splits = huggingface(str(tmp_path), test="val", image_size=4)
    assert splits.test is not None
    assert (reds(splits.train), reds(splits.test)) == ([0, 1, 2, 3, 4, 5, 6], [8, 9, 10])
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0, 1, 2, 0, 1, 2, 0], [2, 0, 1])
    assert splits.train.classes == splits.test.classes == ["ant", "bee", "cat"]
    assert splits.train.name(6) == f"{tmp_path}/train/data-00002-of-00003.arrow row 1"
    assert reds(pickle.loads(pickle.dumps(splits.train))) == [0, 1, 2, 3, 4, 5, 6]
    assert splits.description == (
        f"7 train and 3 test images from {tmp_path}, 3 classes, whole images within 4 × 8 pixels"
    )


def test_one_split_is_opened_as_a_dot_and_without_labels(tmp_path: Path) -> None:
    write(tmp_path, [[4, 5]])
    splits = huggingface(str(tmp_path), train=".", label_column=None, image_size=4)
    assert (reds(splits.train), splits.train.labels.tolist(), splits.train.classes) == ([4, 5], [-1, -1], [])
    assert "data.test=null" in refusal(tmp_path, train=".", test=".", label_column=None)
    assert "is matched by data.train and by data.test" in refusal(tmp_path, train=".", test=".")
    assert "column pixels is missing" in refusal(tmp_path, train=".", image_column="pixels")
    assert "label 1 is outside 0..0" in refusal(tmp_path, train=".", num_classes=1)


def test_rows_without_bytes_and_damaged_ones_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train", [[0, None, 2]])
    file = tmp_path / "train/data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes().replace(png(2), bytes(len(png(2)))))
    source = huggingface(str(tmp_path), image_size=4).train
    assert source.labels.tolist() == [0, -1, 2]
    assert source.decode(0).shape == (3, 4, 4)
    for row, reason in ((1, "the row holds no bytes"), (2, "not an image that Pillow can read")):
        with pytest.raises(CorruptImage, match=rf"\.arrow row {row}: {reason}$"):
            source.decode(row)


def test_other_folders_and_unusable_files_are_refused_with_the_remedy(tmp_path: Path) -> None:
    write(tmp_path / "a", [[0]])
    write(tmp_path / "b", [[0], [1]])
    assert refusal(tmp_path).endswith(f"(no state.json); data.path={tmp_path} has these splits: a, b")
    assert "has these splits: nothing" in refusal(tmp_path / "nowhere")
    (tmp_path / "b/data-00001-of-00002.arrow").unlink()
    assert "data.train=b: 1 of 2 files are missing" in refusal(tmp_path, train="b")
    write(tmp_path / "c", [[0]], codec="zstd")
    assert "its images are compressed" in refusal(tmp_path, train="c")
    write(tmp_path / "d", [[0]], _indices_files=[{"filename": "indices.arrow"}])
    assert "Dataset.flatten_indices()" in refusal(tmp_path, train="d")
    file = tmp_path / "a/data-00000-of-00001.arrow"
    for content in (file.read_bytes()[:400], b"text", b""):
        file.write_bytes(content)
        assert "is no arrow stream, or cut short" in refusal(tmp_path, train="a")
    write(tmp_path / "e", [[]])
    assert "data.train=e: " in refusal(tmp_path, train="e")

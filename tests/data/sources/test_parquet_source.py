"""Parquet files: bytes, labels, class names, and one clear line for whatever does not fit."""

import io
import json
import multiprocessing
import os
import pickle
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unlabeled.data.source import CorruptImage, Source
from unlabeled.data.sources.parquet import ParquetSource, parquet
from unlabeled.errors import UserError

CIFAR10 = Path(__file__).parents[3].parent / "shared/data/cifar10"


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(
    file: Path, labels: Sequence[object] | None, start: int = 0, plain: bool = False, names: list[str] | None = None
) -> None:
    """Row i holds an image of red value start + i."""
    rows = 3 if labels is None else len(labels)
    images: list[Any] = [png(start + row) for row in range(rows)]
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(images if plain else [{"bytes": image, "path": "x.png"} for image in images], kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)


def reds(source: Source) -> list[int]:
    return [int(source.decode(index)[0, 0, 0]) for index in range(len(source))]


def refusal(folder: Path | str, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        parquet(str(folder), image_size=4, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("plain", [False, True])
def test_bytes_in_a_struct_or_plain_are_decoded_in_row_order(tmp_path: Path, plain: bool) -> None:
    write(tmp_path / "train.parquet", [2, 0, 1], plain=plain)
    write(tmp_path / "test.parquet", [1], start=9, plain=plain)
    splits = parquet(str(tmp_path), image_size=4)
    assert splits.test is not None
    assert (reds(splits.train), reds(splits.test)) == ([0, 1, 2], [9])
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([2, 0, 1], [1])
    assert splits.train.labels.dtype == torch.int64
    assert splits.train.classes == splits.test.classes == ["0", "1", "2"]
    assert splits.description == f"3 train and 1 test images from {tmp_path}, 3 classes, squares of 4 pixels"


def test_a_pattern_reads_several_files_in_sorted_order_and_numbers_rows_within_each(tmp_path: Path) -> None:
    write(tmp_path / "train-01.parquet", [1, 0], start=3)
    write(tmp_path / "train-00.parquet", [0, 1, 2])
    write(tmp_path / "train-02.parquet", [])
    write(tmp_path / "train-03.parquet", [2], start=5, plain=True)
    train = parquet(str(tmp_path), train="train-*.parquet", test=None, image_size=4).train
    assert reds(train) == [0, 1, 2, 3, 4, 5]
    rows = [("00", 0), ("00", 1), ("00", 2), ("01", 0), ("01", 1), ("03", 0)]
    assert [train.name(index) for index in range(6)] == [
        f"{tmp_path}/train-{part}.parquet row {row}" for part, row in rows
    ]
    assert train.labels.tolist() == [0, 1, 2, 1, 0, 2]


def test_the_path_may_be_the_beginning_of_the_files_names(tmp_path: Path) -> None:
    write(tmp_path / "mine-train.parquet", [0])
    assert len(parquet(f"{tmp_path}/mine-", test=None, image_size=4).train) == 1


def test_the_image_column_may_change_its_type_between_files(tmp_path: Path) -> None:
    for file, kind in (("train-0", pa.binary()), ("train-1", pa.large_binary())):
        pq.write_table(pa.table({"image": pa.array([png(5)], kind), "label": [0]}), tmp_path / f"{file}.parquet")
    assert reds(parquet(str(tmp_path), train="train-*", test=None, image_size=4).train) == [5, 5]


def test_a_name_with_brackets_is_a_name_before_it_is_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "train[1].parquet", [0, 0])
    assert len(parquet(str(tmp_path), train="train[1].parquet", test=None, image_size=4).train) == 2


def test_class_names_come_from_the_metadata(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1], names=["ant", "bee", "cat"])
    assert parquet(str(tmp_path), test=None, image_size=4).train.classes == ["ant", "bee", "cat"]
    assert parquet(str(tmp_path), test=None, image_size=4, num_classes=4).train.classes == ["ant", "bee", "cat", "3"]
    write(tmp_path / "test.parquet", [0], names=["bee", "ant", "cat"])
    assert "class names differ: data.train has ant, bee, cat; data.test has bee, ant, cat" in refusal(tmp_path)
    assert "data.train=*.parquet: class names differ between" in refusal(tmp_path, train="*.parquet", test=None)


def test_null_labels_are_unlabelled_and_other_negative_ones_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [1, None, 0])
    assert parquet(str(tmp_path), test=None, image_size=4).train.labels.tolist() == [1, -1, 0]
    write(tmp_path / "train.parquet", [1, None, -1])
    message = refusal(tmp_path, test=None)
    assert message.startswith(f"{tmp_path}/train.parquet row 2: label -1 is outside 0..")
    assert "data.num_classes" in message
    assert "unlabelled rows are null" in message


def test_a_label_beyond_the_classes_names_file_row_label_and_key(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1])
    write(tmp_path / "more.parquet", [0, 1, 7])
    given: dict[str, Any] = {"train": "*.parquet", "test": None}
    message = refusal(tmp_path, **given, num_classes=5)
    assert message.startswith(f"{tmp_path}/more.parquet row 2: label 7 is outside 0..4 (data.num_classes=5)")
    assert message.endswith("give data.num_classes=8 or more")
    assert len(parquet(str(tmp_path), **given, num_classes=8, image_size=4).train.classes) == 8
    assert "row 2: label 7 is outside 0..1 (the classes of train)" in refusal(tmp_path, test="more.parquet")
    write(tmp_path / "more.parquet", [2], names=["a", "b"])
    assert "more.parquet row 0: label 2 is outside 0..1 (the metadata's 2 class" in refusal(tmp_path, **given)


def test_a_label_that_must_be_an_id_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 4_000_000_000])
    assert "row 1: label 4000000000 is outside" in refusal(tmp_path, test=None)


def test_label_column_null_reads_images_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", None)
    source = parquet(str(tmp_path), test=None, label_column=None, image_size=4).train
    assert (source.labels.tolist(), source.classes) == ([-1, -1, -1], [])
    assert "data.test=null" in refusal(tmp_path, label_column=None)


def test_missing_columns_and_wrong_types_name_the_key_and_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["cat"])
    message = refusal(tmp_path, test=None)
    assert "column label is string, integer labels are needed" in message
    assert "data.label_column" in message
    message = refusal(tmp_path, test=None, image_column="img")
    assert "column img is missing" in message
    assert "data.image_column" in message
    assert "image: struct<bytes: binary, path: string>, label: string" in message
    assert "column label is string" in refusal(tmp_path, test=None, image_column="label")
    write(tmp_path / "train.parquet", [0.5])
    assert "column label is double" in refusal(tmp_path, test=None)
    write(tmp_path / "train.parquet", None)
    assert "data.label_column=... (null: no labels)" in refusal(tmp_path, test=None)


def test_missing_files_name_the_key_and_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0])
    message = refusal(tmp_path)
    assert message.startswith(f"data.test=test.parquet matches no file in data.path={tmp_path}")
    assert message.endswith("which holds train.parquet; data.test=null goes without")
    assert "data.train=x[ matches no file" in refusal(tmp_path, train="x[", test=None)
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(tmp_path / "train.parquet")


def test_a_file_for_both_training_and_testing_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0])
    write(tmp_path / "test.parquet", [0])
    message = refusal(tmp_path, train="*.parquet")
    assert message.startswith(f"{tmp_path}/test.parquet is matched by data.train and by data.test")


def test_a_file_that_is_no_parquet_file_or_cut_short_or_empty_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0] * 50)
    data = (tmp_path / "train.parquet").read_bytes()
    for broken in (b"", b"text", data[: len(data) // 2]):
        (tmp_path / "train.parquet").write_bytes(broken)
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path}/train.parquet is not a parquet file, or cut short")
        assert "data.train" in message
    write(tmp_path / "train.parquet", None)
    pq.write_table(pq.read_table(tmp_path / "train.parquet").slice(0, 0), tmp_path / "train.parquet")
    assert "holds no rows" in refusal(tmp_path, label_column=None, test=None)


def test_numbers_of_classes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0])
    assert refusal(tmp_path, test=None, num_classes=0).startswith("data.num_classes=0 is not")


def test_corrupt_rows_and_rows_without_bytes_are_named_by_file_and_row(tmp_path: Path) -> None:
    rows = [{"bytes": png(1)}, {"bytes": b"text"}, {"bytes": None}, None]
    pq.write_table(pa.table({"image": rows, "label": [0, 0, 0, 0]}), tmp_path / "train.parquet")
    train = parquet(str(tmp_path), test=None, image_size=4).train
    for row, reason in (
        (1, "not an image that Pillow can read"),
        (2, "the row holds no bytes"),
        (3, "the row holds no"),
    ):
        with pytest.raises(CorruptImage, match=rf"train\.parquet row {row}: {reason}"):
            train.decode(row)


def test_a_source_decodes_after_pickling_and_in_a_forked_worker(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 0, 0])
    train = parquet(str(tmp_path), test=None, image_size=4).train
    assert isinstance(train, ParquetSource)
    assert reds(pickle.loads(pickle.dumps(train))) == [0, 1, 2]
    loader = torch.utils.data.DataLoader(
        _Decoded(train), batch_size=None, num_workers=1, multiprocessing_context=multiprocessing.get_context("fork")
    )
    assert [int(image[0, 0, 0]) for image in loader] == [0, 1, 2]


class _Decoded(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.source.decode(index)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"needs {CIFAR10}")
def test_cifar10_has_its_known_counts_and_pixels() -> None:
    splits = parquet(str(CIFAR10))
    assert splits.test is not None
    assert splits.train.labels.bincount().tolist() == [5000] * 10
    assert splits.test.labels.bincount().tolist() == [1000] * 10
    table = pq.read_table(CIFAR10 / "train.parquet")
    for row in (0, 1, 777, 49_999):
        expected = np.array(Image.open(io.BytesIO(table["image"][row]["bytes"].as_py())))
        assert np.array_equal(splits.train.decode(row).permute(1, 2, 0).numpy(), expected)
        assert int(splits.train.labels[row]) == table["label"][row].as_py()
    assert splits.train.name(49_999) == f"{CIFAR10}/train.parquet row 49999"


def test_without_a_label_the_test_split_is_not_judged(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.parquet", [None, None])
    splits = parquet(str(tmp_path), image_size=4)
    assert (splits.test, list(splits.unjudged)) == (None, ["test"])


def test_more_files_are_read_than_may_be_open(tmp_path: Path) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(40):
        write(tmp_path / f"train-{number:02}.parquet", [0, 1], start=number)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, most[1]))
    try:
        source = parquet(str(tmp_path), train="train-*.parquet", test=None, image_size=4).train
        assert reds(source)[::2] == list(range(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)

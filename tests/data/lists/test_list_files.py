"""Files that list images: what their rows mean, what is refused in one line and what is counted."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.test_folder_source import names, put
from unlabeled.data.lists.list_files import class_order
from unlabeled.data.source import Splits, common_folder
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError


def opened(path: Path | list[str], **given: Any) -> Splits:
    return folder(path if isinstance(path, list) else str(path), image_size=4, **given)


def refusal(path: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    put(tmp_path, "x/1.png", "x/2.png", "y 3,4.png", "[a]*.png")
    return tmp_path


CSV = 'path,label\nx/1.png,dog\n"y 3,4.png",cat\n[a]*.png,\nx/2.png,dog\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.csv", CSV),
        ("list.CSV", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("list.csv", 'label , File_Name \ndog,x/1.png\ncat,"y 3,4.png"\n,[a]*.png\ndog,x/2.png\n'),
        ("list.csv", CSV.removeprefix("path,label\n")),
        ("list.csv", CSV.replace(",", ";").replace('"y 3;4.png"', "y 3,4.png").replace("path;", "image;")),
        ("list.tsv", "path\tlabel\nx/1.png\tdog\ny 3,4.png\tcat\n[a]*.png\t\nx/2.png\tdog"),
    ],
)
def test_a_table_gives_paths_that_are_no_patterns_and_text_labels_in_its_order(
    images: Path, name: str, content: str
) -> None:
    (images / name).write_text(content, newline="")
    splits = opened(images / name)
    assert names(splits.train, images) == ["x/1.png", "y 3,4.png", "[a]*.png", "x/2.png"]
    assert (splits.train.classes, splits.train.labels.tolist()) == (["cat", "dog"], [1, 0, -1, 1])
    assert [int(splits.train.decode(row)[0, 0, 0]) for row in range(4)] == [0, 2, 3, 1]


@pytest.mark.parametrize("labels", [[10, 9, None, 10], ["10", "9", None, "10"]])
def test_a_parquet_file_gives_paths_and_labels_and_whole_numbers_are_in_their_order(
    images: Path, labels: list[Any]
) -> None:
    paths = ["x/1.png", str(images / "x/2.png"), "y 3,4.png", "[a]*.png"]
    pq.write_table(pa.table({"image": paths, "category": labels}), images / "list.parquet")
    splits = opened(images / "list.parquet")
    assert names(splits.train, images) == ["x/1.png", "x/2.png", "y 3,4.png", "[a]*.png"]
    assert (splits.train.classes, splits.train.labels.tolist()) == (["9", "10"], [1, 0, -1, 1])


def test_labels_and_paths_as_pandas_writes_them_are_read(images: Path) -> None:
    """Categories are text, and NaN in a column of numbers is no label."""
    paths = pa.array(["x/1.png", "x/2.png", "y 3,4.png"]).dictionary_encode()
    for labels, classes in (
        (pa.array([1.0, float("nan"), 2.0]), ["1", "2"]),
        (pa.array(["cat", None, "dog"]).dictionary_encode(), ["cat", "dog"]),
    ):
        pq.write_table(pa.table({"path": paths, "label": labels}), images / "list.parquet")
        train = opened(images / "list.parquet").train
        assert (train.classes, train.labels.tolist()) == (classes, [0, -1, 1])


def test_a_test_list_of_training_images_is_refused_and_some_are_said(images: Path) -> None:
    (images / "train.csv").write_text("path,label\nx/1.png,b\nx/2.png,a\n")
    (images / "test.csv").write_text('path,label\nx/../x/2.png,a\n"y 3,4.png",b\n')
    assert "all 2 images of" in refusal(images / "train.csv", test="train.csv")
    (warning,) = opened(images / "train.csv", test="test.csv").warnings
    assert "1 of the 2 images of" in warning
    assert "are trained on too (x/2.png)" in warning


def test_a_text_file_gives_paths_without_labels_and_what_is_not_there_or_again_is_counted(images: Path) -> None:
    os.mkfifo(images / "pipe.png")
    (images / "list.txt").write_text("x/2.png\n\nx/gone.png\ny 3,4.png\nx/../x/2.png\npipe.png\nx\n")
    splits = opened(images / "list.txt")
    assert names(splits.train, images) == ["x/2.png", "y 3,4.png"]
    assert (splits.train.classes, splits.test) == ([], None)
    assert splits.left_out == {
        "listed files that are not there": {"count": 1, "examples": ["x/gone.png"]},
        "files that are listed again": {"count": 1, "examples": ["x/../x/2.png"]},
        "listed names that are no regular files": {"count": 2, "examples": ["pipe.png", "x"]},
    }
    (images / "two.csv").write_text("path,label\nx/1.png,a\nx/1.png,b\n")
    assert "files that are listed again with another label" in opened(images / "two.csv").left_out


def test_train_and_test_may_be_lists_and_tests_go_by_the_names_of_classes(images: Path) -> None:
    (images / "train.csv").write_text("path,label\nx/1.png,b\nx/2.png,a\n")
    (images / "test.csv").write_text("path,label\ny 3,4.png,b\n".replace("y 3,4.png", '"y 3,4.png"'))
    for path, given in ((images, {"train": "train.csv"}), (images / "train.csv", {})):
        splits = opened(path, test="test.csv", **given)
        assert splits.test is not None
        assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([1, 0], [1])
        assert splits.description.startswith("2 train (train.csv) and 1 test (test.csv) images from ")
        assert len(splits.warnings) == 1
    (images / "other.csv").write_text("path,label\n[a]*.png,c\n")
    both = opened([str(images / "train.csv"), str(images / "other.csv")])
    assert (both.train.classes, both.train.labels.tolist()) == (["a", "b", "c"], [1, 0, 2])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.csv", b"", "names no image"),
        ("list.csv", b"path,label\n", "names no image"),
        ("list.txt", b"\n \n", "names no image"),
        ("list.csv", b"where,what\n1,2\n", "has no column of paths; give data.path_column=…, one of where, what"),
        ("list.csv", b"path,label\ngone.png,a\n", "none of its 1 files is there (gone.png, relative to"),
        ("list.csv", b"label,path\na\n", "row 2 has no column path"),
        ("list.csv", b"path\n\xff\xfe\n", "no UTF-8"),
        ("list.csv", b'path\n"' + b"x" * 200_000, "is no CSV file"),
        ("list.csv", b"path\n\0.png\n", "none of its 1 files is there"),
        ("list.txt", b"\x89PNG\r\n\x1a\n", "no UTF-8"),
        ("list.txt", b"../" * 3000 + b"etc/passwd", "none of its 1 files"),
        ("list.parquet", b"", "is not a parquet file, or cut short"),
        ("list.parquet", b"PAR1" * 9, "is not a parquet file, or cut short"),
    ],
)
def test_a_list_that_is_empty_cut_foreign_or_hostile_is_one_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert message.startswith(f"data.path={tmp_path / name}: ")
    assert words in message


def test_keys_of_lists_are_checked(images: Path) -> None:
    (images / "list.csv").write_text(CSV)
    assert "no column named nope; give data.path_column" in refusal(images / "list.csv", path_column="nope")
    assert "no column named nope; give data.label_column" in refusal(images / "list.csv", label_column="nope")
    assert "they are of lists, and none is read" in refusal(images, label_column="label", labels="none")
    assert "leave data.train out" in refusal(images / "list.csv", train="x")
    (images / "notes.md").write_text("no image")
    assert "give an image, a folder of images, or a list of them (.csv" in refusal(images / "notes.md")
    assert [opened(images / "x/1.png").train.name(0)] == [str(images / "x/1.png")]
    pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), images / "own.parquet")
    assert "data=parquet for a file that holds the images" in refusal(images / "own.parquet")
    os.mkfifo(images / "pipe.csv")
    assert "pipe.csv is a FIFO; give" in refusal(images / "pipe.csv")
    for given in ([], [""], [str(images), str(images)]):
        with pytest.raises(UserError, match=r"^data\.path="):
            opened(given)


def test_relative_and_absolute_paths_stand_in_one_list(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    Path("list.csv").write_text(f"path,label\nx/1.png,a\n{images / 'x' / '2.png'},b\n")
    train = opened(Path("list.csv")).train
    assert names(train, images) == ["x/1.png", "x/2.png"]
    assert common_folder(train) == f"{images / 'x'}/"


def test_labels_that_are_one_number_in_two_spellings_are_two_classes_in_one_order() -> None:
    assert class_order({"01", "1", "2", "001"}) == class_order(["2", "1", "001", "01"]) == ["001", "01", "1", "2"]  # type: ignore[arg-type]


def test_a_label_of_minus_one_in_a_list_is_warned_of(images: Path) -> None:
    names = sorted(str(file.relative_to(images)) for file in images.rglob("*.png"))[:3]
    (images / "list.csv").write_text("path,label\n" + "".join(f"{name},{n - 1}\n" for n, name in enumerate(names)))
    splits = folder(str(images / "list.csv"), image_size=4)
    assert splits.train.classes == ["-1", "0", "1"]
    assert "label -1 is taken for a class, of 1 images: leave it empty where there is none" in splits.warnings[0]


def test_a_path_through_a_linked_folder_and_back_is_the_file_that_the_system_opens(images: Path) -> None:
    put(images, "elsewhere/other/9.png", "elsewhere/8.png")
    (images / "link").symlink_to(images / "elsewhere" / "other")
    (images / "list.txt").write_text("link/../8.png\nx/../x/1.png\n")
    source = opened(images / "list.txt").train
    assert names(source, images) == ["link/../8.png", "x/1.png"]
    assert source.decode(0).shape == (3, 4, 4)

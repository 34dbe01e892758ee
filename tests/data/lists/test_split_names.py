"""What a folder is taken for: its splits, its classes, each file once, and what is left out and said."""

import os
import socket
from pathlib import Path

import pytest

from tests.data.sources.test_folder_source import names, put
from unlabeled.data.source import CorruptImage, Source, Splits
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError


def opened(path: Path, **given: str) -> Splits:
    return folder(str(path), image_size=4, **given)  # type: ignore[arg-type]


def counts(splits: Splits) -> dict[str, int]:
    return {reason: found["count"] for reason, found in splits.left_out.items()}


@pytest.mark.parametrize(
    ("train", "test"),
    [("training", "testing"), ("Train", "Test"), ("train", "valid"), ("TRAIN", "validation"), ("train", "Val")],
)
def test_the_usual_names_of_splits_are_known_in_any_letter_case(tmp_path: Path, train: str, test: str) -> None:
    put(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/a/3.png", f"{test}/b/4.png")
    splits = opened(tmp_path)
    assert splits.test is not None
    assert names(splits.train, tmp_path) == [f"{train}/a/1.png", f"{train}/b/2.png"]
    assert names(splits.test, tmp_path) == [f"{test}/a/3.png", f"{test}/b/4.png"]
    assert splits.warnings == []


def test_a_split_that_is_not_used_is_said_and_two_to_train_on_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "Testing/a/2.png", "val/a/3.png")
    splits = opened(tmp_path)
    assert splits.test is not None
    assert names(splits.test, tmp_path) == ["Testing/a/2.png"]
    assert splits.warnings == [f"{tmp_path} holds val too, not used: data.test=val would test on it"]
    put(tmp_path, "training/a/1.png")
    with pytest.raises(UserError, match=r"holds train and training: give data\.train=<one of them>$"):
        opened(tmp_path)


def test_classes_that_look_like_dates_or_hold_splits_are_warned_of_and_not_where_they_were_asked_for(
    tmp_path: Path,
) -> None:
    put(
        tmp_path,
        "days/2023-01-05/1.png",
        "days/20230106/2.png",
        "zip/archive/train/a/1.png",
        "zip/archive/test/a/2.png",
    )
    (warning,) = opened(tmp_path / "days").warnings
    assert warning == (
        f"the classes of {tmp_path}/days look like dates (2023-01-05, 20230106): give data.labels=none if they are none"
    )
    (warning,) = opened(tmp_path / "zip").warnings
    assert warning == (
        f"{tmp_path}/zip: archive is taken for a class, and holds test and train, which look like splits: give "
        f"data.path={tmp_path}/zip/archive if they are"
    )
    assert opened(tmp_path / "days", labels="folders").warnings == []
    put(tmp_path, "rail/train/1.png", "rail/plane/2.png")
    (warning,) = opened(tmp_path / "rail", train=".").warnings
    assert warning == f"{tmp_path}/rail: train is taken for a class, and has the name of a split"


@pytest.mark.parametrize(
    "names",
    [
        ["2023", "2024"],
        ["2023-01", "2023-1-5", "20230105_101500"],
        ["01-05-2023", "05.01.2023", "5 jan 2023"],
        ["2024-05-01T10:00:00", "2024-05-02 walk"],
        ["jan", "February", "mar 2023"],
    ],
)
def test_dates_of_any_spelling_are_warned_of(tmp_path: Path, names: list[str]) -> None:
    put(tmp_path, *(f"{name}/1.png" for name in names))
    (warning,) = opened(tmp_path).warnings
    assert f"look like dates ({', '.join(sorted(names))})" in warning
    put(tmp_path, "cat/1.png")
    assert opened(tmp_path).warnings == []


@pytest.mark.parametrize("names", [["5", "7"], ["2023 cats", "2024 dogs"], ["19000", "20000"], ["1-2", "3-4"]])
def test_numbers_and_other_names_are_no_dates(tmp_path: Path, names: list[str]) -> None:
    put(tmp_path, *(f"{name}/1.png" for name in names))
    assert opened(tmp_path).warnings == []


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *[("train_set", "test_set"), ("images_train", "images_val"), ("train2017", "val2017"), ("TrainSet", "TestSet")],
        *[("seg_train", "seg_pred_test"), ("training-data", "validation-data"), ("train images", "holdout images")],
    ],
)
def test_classes_that_are_named_like_splits_are_warned_of(tmp_path: Path, train: str, test: str) -> None:
    put(tmp_path, f"{train}/a/1.png", f"{test}/a/2.png")
    (warning,) = opened(tmp_path).warnings
    assert warning == (
        f"{tmp_path}: {train} and {test} are taken for classes, and look like splits: give data.train={train} "
        f"data.test={test} if they are"
    )
    splits = opened(tmp_path, train=train, test=test)
    assert (len(splits.train), splits.test is not None and len(splits.test), splits.warnings) == (1, 1, [])


def test_classes_of_trains_and_contests_are_not_taken_for_splits(tmp_path: Path) -> None:
    put(tmp_path, "bullet_train/1.png", "contest/2.png", "value/3.png", "training_shoe/4.png")
    assert opened(tmp_path).warnings == []


def test_folders_without_an_image_beside_classes_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    for name in ("train/c/d", "test/b"):
        (tmp_path / name).mkdir(parents=True)
    splits = opened(tmp_path)
    assert splits.left_out == {"folders beside the classes that hold no image": {"count": 2, "examples": ["c", "b"]}}
    assert splits.warnings == [f"{tmp_path}/test has no image of 1 of the 2 classes of train (b)"]


def test_splits_without_class_folders_are_not_tested_on_and_that_is_said(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "test/2.png")
    splits = opened(tmp_path)
    assert splits.test is None
    assert splits.warnings == [f"{tmp_path}/test is not tested on: {tmp_path}/train has no labels"]


def test_a_link_to_a_folder_above_it_is_not_followed_and_is_named(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    (tmp_path / "train/a/loop").symlink_to(tmp_path)
    (tmp_path / "train/b/up").symlink_to("..")
    splits = opened(tmp_path)
    assert names(splits.train, tmp_path) == ["train/a/1.png", "train/b/2.png"]
    assert splits.left_out == {
        "links to a folder above them, not followed": {"count": 2, "examples": ["a/loop", "b/up"]}
    }


def test_a_file_counts_once_whatever_links_lead_to_it_and_the_one_that_is_no_link_stays(tmp_path: Path) -> None:
    put(tmp_path, "data/b/1.png", "data/b/2.png", "elsewhere/3.png", "elsewhere/deep/4.png")
    (tmp_path / "data/a").symlink_to("b")  # sorts before what it leads to
    (tmp_path / "data/b/0.png").symlink_to("1.png")
    os.link(tmp_path / "data/b/2.png", tmp_path / "data/b/hard.png")
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/d").symlink_to(tmp_path / "elsewhere/deep")
    (tmp_path / "data/broken.png").symlink_to("nowhere")
    splits = opened(tmp_path / "data")
    assert names(splits.train, tmp_path / "data") == ["b/1.png", "b/2.png", "c/3.png", "c/deep/4.png"]
    assert splits.train.classes == ["b", "c"]
    assert counts(splits) == {
        "broken links": 1,
        "folders that are listed under another name": 2,
        "files that are listed under another name": 2,
    }


def test_test_images_that_are_trained_on_are_said_and_refused_where_all_are(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
    os.link(tmp_path / "train/a/1.png", tmp_path / "test/a/hard.png")
    (tmp_path / "test/b/soft.png").symlink_to(tmp_path / "train/b/2.png")
    assert opened(tmp_path).warnings == [
        f"2 of the 4 images of {tmp_path}/test are trained on too (a/hard.png), so accuracies on them say little"
    ]
    for name in ("a/3.png", "b/4.png"):
        (tmp_path / "test" / name).unlink()
    with pytest.raises(UserError, match=r"^all 2 images of .*/test are trained on too \(a/hard\.png\): give data"):
        opened(tmp_path)


def test_a_test_split_that_is_a_link_to_the_training_images_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png")
    (tmp_path / "test").symlink_to("train")
    splits = opened(tmp_path)
    assert splits.test is None
    assert splits.warnings == [
        f"{tmp_path}/test is not tested on: it is a link to {tmp_path}/train, which is trained on"
    ]


def test_a_file_that_several_folders_and_lists_give_counts_once(tmp_path: Path) -> None:
    put(tmp_path, "A/a/1.png", "A/b/2.png", "B/a/3.png")
    (tmp_path / "B/a/0.png").symlink_to(tmp_path / "A/b/2.png")
    os.link(tmp_path / "A/a/1.png", tmp_path / "B/a/4.png")
    (tmp_path / "list.csv").write_text("path,label\nB/a/3.png,b\nA/b/2.png,a\n")
    splits = folder([str(tmp_path / "A"), str(tmp_path / "B"), str(tmp_path / "list.csv")], image_size=4)
    assert names(splits.train, tmp_path) == ["A/a/1.png", "A/b/2.png", "B/a/3.png"]
    assert splits.train.labels.tolist() == [0, 1, 0]
    assert counts(splits) == {"files that are listed under another name": 4}


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "\0", "x\0y.csv", "x" * 300 + ".csv"])
@pytest.mark.parametrize("key", ["path", "train", "test"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path, key: str, name: str) -> None:
    put(tmp_path, "train/a/1.png", "test/a/2.png")
    with pytest.raises(UserError, match=rf"^data\.{key}=.* does not exist; give a folder of images$"):
        folder(**{"path": str(tmp_path), "image_size": 4} | {key: name})  # type: ignore[arg-type]


def test_links_that_branch_at_every_level_cost_one_look_at_each_folder(tmp_path: Path) -> None:
    for level in range(40):  # 2^40 paths
        (tmp_path / f"{level}").mkdir()
        for side in ("x", "y"):
            (tmp_path / f"{level}" / side).symlink_to(f"../{level + 1}")
    put(tmp_path, "40/1.png")
    splits = opened(tmp_path / "0", labels="none")
    assert len(splits.train) == 1


def test_only_regular_files_are_images(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "a/device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the name of a socket must be short
        server.bind("a/socket.png")
    splits = opened(tmp_path)
    assert names(splits.train, tmp_path) == ["a/1.png"]
    assert counts(splits) == {f"files that are a {kind}": 1 for kind in ("device", "FIFO", "socket")}


def test_an_image_that_has_become_a_fifo_is_corrupt_and_does_not_hang(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    source: Source = opened(tmp_path).train
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(CorruptImage, match=r"1\.png: a FIFO, not a regular file$"):
        source.decode(0)


def test_a_file_without_an_extension_that_decodes_is_an_image_and_others_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "a/n0001", "a/1.png")
    for name in ("a/LICENSE", "a/notes.txt", "a/Thumbs.db", "a/old.png.bak", "a/.DS_Store"):
        (tmp_path / name).write_text("no image")
    splits = opened(tmp_path)
    assert names(splits.train, tmp_path) == ["a/1.png", "a/n0001"]
    assert splits.left_out == {
        "hidden files and folders": {"count": 1, "examples": ["a/.DS_Store"]},
        "files that are no images by their names": {
            "count": 4,
            "examples": ["a/LICENSE", "a/Thumbs.db", "a/notes.txt"],
        },
    }


def test_a_folder_without_images_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_text("")
    with pytest.raises(
        UserError, match=r"but 1 files that are no images by their names \(a\.heic\): change data\.path"
    ):
        opened(tmp_path)


def test_names_with_marks_of_patterns_are_names(tmp_path: Path) -> None:
    put(tmp_path, "a[0-9]*{x,y}/b?[!].png", "train?/1.png")
    source = opened(tmp_path / "a[0-9]*{x,y}").train
    assert names(source, tmp_path) == ["a[0-9]*{x,y}/b?[!].png"]
    assert source.decode(0).shape == (3, 4, 4)


def test_a_name_that_is_no_utf_8_is_listed_decoded_and_shown_escaped(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff\n.png")
    (tmp_path / os.fsdecode(b"\xfe.txt")).write_text("")
    splits = opened(tmp_path)
    assert splits.train.decode(0).shape == (3, 4, 4)
    ((_, left),) = splits.left_out.items()
    assert left["examples"] == [r"\xfe.txt"]


def test_classes_of_several_folders_are_joined_by_their_names(tmp_path: Path) -> None:
    put(tmp_path, "A/train/b/1.png", "A/train/c/2.png", "A/test/c/3.png", "B/train/a/4.png", "B/test/a/5.png")
    splits = folder([str(tmp_path / "A"), str(tmp_path / "B")], image_size=4)
    assert splits.test is not None
    assert names(splits.train, tmp_path) == ["A/train/b/1.png", "A/train/c/2.png", "B/train/a/4.png"]
    assert (splits.train.classes, splits.train.labels.tolist()) == (["a", "b", "c"], [1, 2, 0])
    assert (names(splits.test, tmp_path), splits.test.labels.tolist()) == (["A/test/c/3.png", "B/test/a/5.png"], [2, 0])
    assert [int(splits.train.decode(row)[0, 0, 0]) for row in range(3)] == [0, 1, 3]
    with pytest.raises(UserError, match=r"whose images it would give twice; leave one out$"):
        folder([str(tmp_path / "A/train"), str(tmp_path / "A/train/b")], image_size=4)


def test_several_test_sets_are_kept_apart(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "v2/b/4.png", "v2/a/5.png")
    splits = folder(str(tmp_path), test=["val", "v2"], image_size=4)
    assert splits.test is not None
    assert names(splits.test, tmp_path) == ["val/a/3.png"]
    assert [(name, other.labels.tolist()) for name, other in splits.others.items()] == [("v2", [0, 1])]
    put(tmp_path, "x/val/b/6.png")
    alike = folder(str(tmp_path), train="train", test=["val", "x/val"], image_size=4)
    assert list(alike.others) == [f"{tmp_path}/x/val".strip("/").replace("/", "_")]
    assert splits.description.startswith(f"2 train (train) and 1 test (val) and 2 test (v2) images from {tmp_path}, ")

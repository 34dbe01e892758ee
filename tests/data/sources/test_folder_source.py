"""Folders of image files: what becomes a class, what is skipped, and what is refused."""

import pickle
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from unlabeled.data.lists.walk import _WRITTEN
from unlabeled.data.source import CorruptImage, Source
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError


def put(root: Path, *names: str) -> None:
    """Writes a 4 × 4 grey image per name, its brightness its position in the list."""
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(root / name, "PNG")


def names(source: Source, root: Path) -> list[str]:
    return [str(Path(source.name(index)).relative_to(root)) for index in range(len(source))]


def refusal(**given: str) -> str:
    path = given.pop("path")
    with pytest.raises(UserError) as caught:
        folder(path, given.get("train"), given.get("test"), 4, cast(Any, given.get("labels", "auto")))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sub_folders_are_classes_in_sorted_order_at_any_depth_and_in_any_letter_case(tmp_path: Path) -> None:
    put(tmp_path, "cat/z.PNG", "cat/deep/deeper/a.jpg", "ant/b.JPEG", "ant/c.tiff", "bee/d.WebP")
    splits = folder(str(tmp_path), image_size=4)
    assert splits.test is None
    assert splits.train.classes == ["ant", "bee", "cat"]
    expected = ["ant/b.JPEG", "ant/c.tiff", "bee/d.WebP", "cat/z.PNG", "cat/deep/deeper/a.jpg"]
    assert names(splits.train, tmp_path) == expected
    assert splits.train.labels.tolist() == [0, 0, 1, 2, 2]
    assert [int(splits.train.decode(index)[0, 0, 0]) for index in range(5)] == [2, 3, 4, 0, 1]


def test_hidden_files_and_other_files_and_empty_folders_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/._2.png", ".cache/3.png", "a/.hidden/4.png")
    (tmp_path / "a/readme.txt").write_text("no image")
    (tmp_path / "a/data.h5").write_text("no image")
    (tmp_path / "empty").mkdir()
    train = folder(str(tmp_path), image_size=4).train
    assert names(train, tmp_path) == ["a/1.png"]
    assert train.classes == ["a"]


@pytest.mark.parametrize("written", _WRITTEN, ids=lambda files: "+".join(sorted(files)))
@pytest.mark.parametrize(
    "images", [("b.png", "a.png"), ("cat/1.png", "dog/2.png"), ("train/cat/1.png", "test/cat/2.png")]
)
def test_what_a_command_wrote_among_the_images_is_no_image(
    written: set[str], images: tuple[str, ...], tmp_path: Path
) -> None:
    put(tmp_path, *images)
    before = folder(str(tmp_path), image_size=4)
    put(tmp_path, "outputs/x/pictures/views.png", "outputs/x/report/map.png")
    for name in written:
        (tmp_path / "outputs/x" / name).touch()
    after = folder(str(tmp_path), image_size=4)
    assert names(after.train, tmp_path) == names(before.train, tmp_path)
    assert (after.train.classes, len(after.test or [])) == (before.train.classes, len(before.test or []))
    if "test/cat/2.png" not in images:
        assert after.left_out["folders of runs and other results"]["examples"] == ["outputs/x"]
        assert len(folder(str(tmp_path / "outputs/x/pictures"), image_size=4).train) == 1  # asked for, they are read


def test_a_flat_folder_has_no_labels_and_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.png")
    splits = folder(str(tmp_path), image_size=4)
    assert (splits.train.labels.tolist(), splits.train.classes, splits.test) == ([-1, -1], [], None)
    assert names(splits.train, tmp_path) == ["a.png", "b.png"]


def test_labels_none_reads_nested_and_mixed_folders_without_labels(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "x/a.png", "x/y/c.png")
    train = folder(str(tmp_path), image_size=4, labels="none").train
    assert (train.labels.tolist(), train.classes) == ([-1, -1, -1], [])


def test_a_mixed_folder_is_refused_by_name_of_the_file_and_key(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "x/a.png")
    message = refusal(path=str(tmp_path))
    assert "b.png" in message
    assert "data.labels=none" in message
    assert "b.png" in refusal(path=str(tmp_path), labels="folders")
    assert refusal(path=str(tmp_path), labels="maybe") == "data.labels=maybe is not known: give auto, folders or none"


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_are_the_splits(tmp_path: Path, held_out: str) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", f"{held_out}/b/3.png", f"{held_out}/a/4.png", f"{held_out}/a/5.png")
    splits = folder(str(tmp_path), image_size=4)
    assert splits.test is not None
    assert names(splits.train, tmp_path) == ["train/a/1.png", "train/b/2.png"]
    assert splits.test.labels.tolist() == [0, 0, 1]
    assert splits.test.classes == ["a", "b"]
    assert splits.description == (
        f"2 train (train) and 3 test ({held_out}) images from {tmp_path}, 2 classes, whole images within 4 × 8 pixels"
    )


def test_test_goes_before_val_and_parameters_before_both(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "test/a/2.png", "val/a/3.png", "val/a/4.png")
    for given, count in ((None, 1), ("test", 1), ("val", 2)):
        test = folder(str(tmp_path), test=given, image_size=4).test
        assert test is not None
        assert len(test) == count
    assert folder(str(tmp_path), test="none", image_size=4).test is None
    assert len(folder(str(tmp_path), train="val", test="test", image_size=4).train) == 2


def test_a_class_called_train_is_not_taken_for_the_train_split(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "plane/2.png")
    message = refusal(path=str(tmp_path))
    assert "plane/2.png" in message
    assert "data.train=." in message
    assert folder(str(tmp_path), train=".", image_size=4).train.classes == ["plane", "train"]


def test_a_test_folder_without_a_train_folder_is_not_taken_for_a_class(tmp_path: Path) -> None:
    put(tmp_path, "test/1.png", "plane/2.png")
    assert "no train/" in refusal(path=str(tmp_path))


def test_test_images_among_the_train_images_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    for test in (".", "a"):
        assert "which is trained on" in refusal(path=str(tmp_path), train=".", test=test)


def test_a_class_that_train_lacks_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/bb/4.png")
    message = refusal(path=str(tmp_path))
    assert message.startswith(f"{tmp_path}/test/bb is a class that {tmp_path}/train lacks (1 such)")
    assert "data.test" in message


def test_a_test_split_without_a_class_goes_by_the_names_and_says_so(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "train/c/3.png", "test/c/4.png", "test/a/5.png")
    (tmp_path / "test" / "b").mkdir()
    splits = folder(str(tmp_path), image_size=4)
    assert splits.test is not None
    assert (splits.test.classes, splits.test.labels.tolist()) == (["a", "b", "c"], [0, 2])
    assert splits.warnings == [f"{tmp_path}/test has no image of 1 of the 3 classes of train (b)"]


def test_a_test_split_for_images_without_labels_is_refused_when_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "test/a/2.png")
    assert folder(str(tmp_path), image_size=4).test is None
    assert "data.test=test cannot be used" in refusal(path=str(tmp_path), test="test")


def test_a_missing_path_names_the_path_and_the_key(tmp_path: Path) -> None:
    given = f"{tmp_path}/nowhere"
    assert refusal(path=given) == f"data.path={given}: {given} does not exist; give a folder of images"
    (tmp_path / "a.md").write_text("no image")
    assert "a.md is a file" in refusal(path=f"{tmp_path}/a.md")
    put(tmp_path, "a.png")
    assert refusal(path=str(tmp_path), train="x").startswith(f"data.train=x: {tmp_path}/x does not exist")
    assert refusal(path=str(tmp_path), test="y").startswith(f"data.test=y: {tmp_path}/y does not exist")


def test_an_image_is_a_data_set_of_one_and_test_images_without_labels_are_kept_and_not_tested_on(
    tmp_path: Path,
) -> None:
    put(tmp_path, "train/a.png")
    put(tmp_path, "test/b.png")
    one = folder(f"{tmp_path}/train/a.png", image_size=4)
    assert (len(one.train), one.train.labels.tolist(), one.test) == (1, [-1], None)
    both = folder(str(tmp_path), image_size=4)
    assert both.test is None
    assert list(both.every()) == ["train", "test"]
    assert both.every()["test"].name(0) == f"{tmp_path}/test/b.png"


def test_an_empty_folder_names_the_path_and_the_key(tmp_path: Path) -> None:
    message = refusal(path=str(tmp_path))
    assert message.startswith(f"{tmp_path} holds no image")
    assert "data.path=" in message


def test_a_corrupt_file_is_named_with_its_path_when_it_is_decoded(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "b.png").write_text("text")
    train = folder(str(tmp_path), image_size=4).train
    assert train.decode(0).shape == (3, 4, 4)
    with pytest.raises(CorruptImage, match=rf"^{tmp_path}/b\.png: not an image that Pillow can read$"):
        train.decode(1)


def test_a_folder_source_survives_pickling_with_names_beyond_ascii(tmp_path: Path) -> None:
    put(tmp_path, "käse/größe.png")
    train = folder(str(tmp_path), image_size=4).train
    copy = pickle.loads(pickle.dumps(train))
    assert copy.name(0) == str(tmp_path / "käse/größe.png")
    assert copy.decode(0).tolist() == train.decode(0).tolist()

"""Images that are held out as a test split by the hash of their names."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.sources.test_folder_source import names, put
from unlabeled.data.lists.holdout import name_hash
from unlabeled.data.source import Splits
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError


def held(path: Path, share: float, **given: str) -> Splits:
    return folder(str(path), image_size=4, holdout=share, **given)  # type: ignore[arg-type]


def images(count: int, classes: str = "ab") -> list[str]:
    return [f"{name}/{number}.png" for name in classes for number in range(count)]


def sides(splits: Splits, root: Path) -> tuple[set[str], set[str]]:
    assert splits.test is not None
    return set(names(splits.train, root)), set(names(splits.test, root))


def test_an_image_is_held_out_if_the_hash_of_its_path_is_below_the_share(tmp_path: Path) -> None:
    put(tmp_path, *images(40))
    train, test = sides(held(tmp_path, 0.3), tmp_path)
    literal = {name for name in images(40) if int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12 < 0.3}
    assert test == literal
    assert train == set(images(40)) - literal


def test_about_the_share_of_many_names_is_held_out() -> None:
    hashes = np.array([name_hash(f"class/{number}.jpg") for number in range(20_000)])
    for share in (0.1, 0.2, 0.5):
        assert abs((hashes < share).mean() - share) < 4 * np.sqrt(share * (1 - share) / 20_000)


def test_no_image_changes_sides_when_others_are_added_or_removed_or_the_folder_moves(tmp_path: Path) -> None:
    put(tmp_path, *(f"photos/{name}" for name in images(20)))
    train, test = sides(held(tmp_path / "photos", 0.3), tmp_path / "photos")
    put(tmp_path, *(f"photos/{name}" for name in images(60)), "photos/c/1.png", "photos/c/2.png")
    (tmp_path / "photos/a/3.png").unlink()
    os.rename(tmp_path / "photos", tmp_path / "moved")
    later_train, later_test = sides(held(tmp_path / "moved", 0.3), tmp_path / "moved")
    gone = {"a/3.png"}
    assert train - gone <= later_train
    assert test - gone <= later_test


def test_a_class_keeps_at_least_one_image_to_train_on(tmp_path: Path) -> None:
    put(tmp_path, *images(1, "abcdefgh"), *images(3, "xyz"))
    splits = held(tmp_path, 0.95)
    train, test = sides(splits, tmp_path)
    assert {name[0] for name in train} == set("abcdefghxyz")
    assert test
    assert splits.train.classes == list("abcdefghxyz")
    (warning,) = splits.warnings
    assert "has no image of" in warning


def test_a_folder_named_from_beside_it_is_described_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"classes/{name}" for name in images(30)))
    monkeypatch.chdir(tmp_path)
    assert f"images from {tmp_path}, " in folder("classes", holdout=0.3).description


def test_labels_go_with_their_images_and_the_description_says_what_was_done(tmp_path: Path) -> None:
    put(tmp_path, *images(30))
    splits = held(tmp_path, 0.3)
    for source in filter(None, (splits.train, splits.test)):
        own = [source.classes[int(label)] for label in source.labels]
        assert own == [name[0] for name in names(source, tmp_path)]
    assert f"{len(splits.train)} train ({tmp_path.name}) and " in splits.description
    assert f"test ({tmp_path.name} (data.holdout)) images" in splits.description


def test_images_of_several_folders_and_of_lists_are_held_out_too(tmp_path: Path) -> None:
    put(tmp_path, *(f"one/{name}" for name in images(20)), *(f"two/{name}" for name in images(20)))
    splits = folder([str(tmp_path / "one"), str(tmp_path / "two")], image_size=4, holdout=0.3)
    apart = [sides(held(tmp_path / name, 0.3), tmp_path) for name in ("one", "two")]
    assert sides(splits, tmp_path) == (apart[0][0] | apart[1][0], apart[0][1] | apart[1][1])
    rows = "".join(f"one/{name},{name[0]}\n" for name in images(20))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    listed = held(tmp_path / "list.csv", 0.3)
    assert listed.test is not None
    assert 0 < len(listed.test) < 40 == len(listed.train) + len(listed.test)


def test_images_without_labels_are_refused_since_nothing_can_be_tested_on_them(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number}.png" for number in range(40)))
    with pytest.raises(UserError, match=r"data\.holdout=0\.3: .* has no labels, so nothing can be tested; leave data"):
        held(tmp_path, 0.3)


def test_a_share_beside_a_test_split_or_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    with pytest.raises(UserError, match=r"data\.holdout=0\.3: .*/test is the test split already; leave data\.holdout"):
        held(tmp_path, 0.3)
    with pytest.raises(UserError, match=r"data\.holdout=1e-09: none of 2 images is held out; give a larger share$"):
        held(tmp_path, 1e-9, test="none")


def test_of_images_all_of_which_would_be_held_out_one_is_trained_on(tmp_path: Path) -> None:
    low = [name for name in (f"{number}.png" for number in range(40)) if name_hash(name) < 0.5][:2]
    put(tmp_path, *low)
    with pytest.raises(UserError, match=r"data.holdout=0.5: .* has no labels, so nothing can be tested"):
        held(tmp_path, 0.5)


def test_what_is_left_out_is_counted_once_and_classes_named_like_splits_are_warned_of(tmp_path: Path) -> None:
    put(tmp_path, *(f"images/{split}/{number}.png" for split in ("train", "val") for number in range(9)))
    put(tmp_path, *images(20, "b"))
    (tmp_path / "b" / "notes.txt").touch()
    splits = held(tmp_path, 0.3)
    assert [each["count"] for each in splits.left_out.values()] == [1]
    assert "images is taken for a class, and holds train and val" in "".join(splits.warnings)

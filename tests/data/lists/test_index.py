"""A kept list of images: reused while it is true, made again when it is not, shared by reference and never half."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unlabeled.data.lists import index as lists
from unlabeled.data.lists.index import Index, load_or_build, make_index
from unlabeled.data.source import Source
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError

COLUMNS: dict[str, np.ndarray | list[bytes]] = {"label": np.array([3, -1]), "name": [b"a", b"\xff\xc3"]}


class Scans:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> tuple[dict[str, np.ndarray | list[bytes]], lists.IndexNote]:
        self.count += 1
        return COLUMNS, {"scan": self.count}


def test_rows_come_back_as_they_were_given_from_memory_from_the_file_and_from_a_pickle(tmp_path: Path) -> None:
    from_file = load_or_build({"of": "x"}, str(tmp_path), lambda note: True, Scans())
    for index in (make_index(COLUMNS, {"scan": 1}), from_file, pickle.loads(pickle.dumps(from_file))):
        assert (len(index), index.note) == (2, {"scan": 1})
        assert index.numbers("label").tolist() == [3, -1]
        assert [index.text("name", row) for row in range(2)] == [b"a", b"\xff\xc3"]
        assert (index.has("name"), index.has("other")) == (True, False)
    assert len(pickle.dumps(from_file)) < 300  # the file's name, not its rows


def test_no_rows_are_an_index_too(tmp_path: Path) -> None:
    empty = load_or_build(
        {"of": "x"}, str(tmp_path), lambda note: True, lambda: ({"a": np.zeros(0, np.int64), "b": list[bytes]()}, {})
    )
    assert (len(empty), empty.numbers("a").tolist()) == (0, [])


def test_a_kept_index_is_scanned_again_only_when_it_is_stale_or_of_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = Scans()
    for fresh, of, expected in ((True, "x", 1), (True, "x", 1), (True, "y", 2), (False, "x", 3), (True, "x", 3)):
        index = load_or_build({"of": of}, str(tmp_path), lambda note, fresh=fresh: fresh, scans)  # type: ignore[misc]
        assert (scans.count, index.note["scan"]) == (expected, expected)
    assert capsys.readouterr().out.count("is out of date: scanning x again") == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    scans = Scans()
    load_or_build({"of": "x"}, str(tmp_path), lambda note: True, scans)
    (file,) = tmp_path.iterdir()
    for content in (file.read_bytes()[:-20], b"", b"text"):
        file.write_bytes(content)
        assert load_or_build({"of": "x"}, str(tmp_path), lambda note: True, scans).numbers("label").tolist() == [3, -1]
    assert scans.count == 4


def test_short_lists_are_not_kept_where_nobody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_or_build({"of": "x"}, None, lambda note: True, Scans())
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(lists, "MANY", 2)
    load_or_build({"of": "x"}, None, lambda note: True, Scans())
    assert len(list((tmp_path / "unlabeled").iterdir())) == 1


def test_a_place_that_cannot_be_written_to_is_refused_where_given_and_else_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unlabeled").write_text("in the way")
    with pytest.raises(UserError, match=r"^data\.index=.*/unlabeled is a file; give the name of a folder"):
        load_or_build({"of": "x"}, str(tmp_path / "unlabeled"), lambda note: True, Scans())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(load_or_build({"of": "x"}, None, lambda note: True, Scans(), always=True)) == 2
    assert "data.index=... gives another folder" in capsys.readouterr().out


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Source]:
    """Opens class folders under ``data`` whose list is kept in ``kept``; they have not changed for a while."""
    from PIL import Image

    monkeypatch.setattr("unlabeled.data.lists.listing._SETTLED", 0)
    for name in ("data/a/1.png", "data/a/2.png", "data/b/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    return lambda: folder(str(tmp_path / "data"), image_size=4, index=str(tmp_path / "kept")).train


def names(source: Source) -> list[str]:
    return [source.name(row).rsplit("/", 1)[1] for row in range(len(source))]


def test_a_folder_is_listed_once_and_again_when_a_file_comes_or_goes_at_any_depth(
    tmp_path: Path, classes: Callable[[], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(classes()) == ["1.png", "2.png", "3.png"]
    walked: list[Path] = []
    from unlabeled.data.lists import listing

    walk = listing.walk  # type: ignore[attr-defined]
    monkeypatch.setattr(listing, "walk", lambda root, *rest: walked.append(root) or walk(root, *rest))  # type: ignore[func-returns-value]
    warm = classes()
    assert not walked
    assert (names(warm), warm.labels.tolist(), warm.classes) == (["1.png", "2.png", "3.png"], [0, 0, 1], ["a", "b"])
    (tmp_path / "data/b/deep/3.png").rename(tmp_path / "data/b/deep/4.png")
    assert names(classes()) == ["1.png", "2.png", "4.png"]
    (tmp_path / "data/a/2.png").unlink()
    assert names(classes()) == ["1.png", "4.png"]
    (tmp_path / "data/c").mkdir()
    (tmp_path / "data/a/1.png").rename(tmp_path / "data/c/1.png")
    assert (names(classes()), classes().classes) == (["4.png", "1.png"], ["b", "c"])
    assert len(walked) == 3
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_folder_that_changed_just_before_its_scan_is_scanned_again(
    tmp_path: Path, classes: Callable[[], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlabeled.data.lists.listing._SETTLED", 10**12)
    classes()
    scans: list[Path] = []
    from unlabeled.data.lists import listing as module

    scan = module._scan
    monkeypatch.setattr(module, "_scan", lambda root: scans.append(root) or scan(root))  # type: ignore[func-returns-value]
    classes()
    assert len(scans) == 1


def test_a_warm_folder_is_pickled_as_the_name_of_its_list(classes: Callable[[], Source]) -> None:
    copy = pickle.loads(pickle.dumps(classes()))
    assert names(copy) == ["1.png", "2.png", "3.png"]
    assert isinstance(copy._listed, Index)
    assert copy.decode(2).shape == (3, 4, 4)

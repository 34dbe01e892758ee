"""Byte ranges of local files and of an object store, and the patterns that name files."""

import os
from pathlib import Path

import fsspec
import pytest

from unlabeled.data.sources.files import expand_braces, file_stamps, match_files, open_file, read_range
from unlabeled.errors import UserError


def test_braces_name_every_number_in_its_width_and_every_choice() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]
    assert expand_braces("plain{x}.tar") == ["plain{x}.tar"]


def test_a_missing_file_of_a_range_is_refused_by_name_and_a_star_takes_those_that_are_there(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"t-{number:02}.tar").write_bytes(b"x")
    with pytest.raises(UserError, match=r"2 of 4 files are not in data\.path=.* \(t-01\.tar, t-03\.tar\)"):
        match_files(str(tmp_path), "t-{00..03}.tar", "data.train", "tar")
    assert match_files(str(tmp_path), "t-*.tar", "data.train", "tar") == [
        f"{tmp_path}/t-00.tar",
        f"{tmp_path}/t-02.tar",
    ]
    with pytest.raises(UserError, match=r"train=u-\{0\.\.1\} matches no file .* which holds t-00\.tar, t-02\.tar"):
        match_files(str(tmp_path), "u-{0..1}", "data.train", "tar")


def test_a_range_of_bytes_is_the_same_near_and_far(tmp_path: Path) -> None:
    data = bytes(range(256))
    near, far = str(tmp_path / "a.bin"), "memory://files/a.bin"
    for place in (near, far):
        with fsspec.open(place, "wb") as file:
            file.write(data)
        assert read_range(place, 10, 5) == data[10:15]
        assert read_range(place, 250, 20) == data[250:]
        with open_file(place) as file:
            assert file.read() == data
        assert file_stamps([place])[0][:2] == [place, 256]


def test_patterns_find_files_in_an_object_store() -> None:
    for name in ("b-0.tar", "b-1.tar", "c.tar"):
        with fsspec.open(f"memory://store/deep/{name}", "wb") as file:
            file.write(b"x")
    base = "memory://store/deep"
    assert match_files(base, "b-*.tar", "data.train", "tar") == [f"memory:///store/deep/b-{n}.tar" for n in (0, 1)]
    assert match_files(base, "b-{0..1}.tar", "data.train", "tar") == [f"{base}/b-0.tar", f"{base}/b-1.tar"]
    with pytest.raises(UserError, match=r"^data\.test=x\*\.tar matches no file in .*//store/deep; data\.test=null"):
        match_files(base, "x*.tar", "data.test", "tar")


def test_a_kind_of_store_whose_package_is_missing_is_one_line_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"^nosuch://bucket/a\.tar cannot be read \(.*\): pip install .*, or copy it$"):
        match_files("nosuch://bucket", "a.tar", "data.train", "tar")


def test_whatever_a_store_raises_is_one_line_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, path: str) -> None:
        raise RuntimeError("no credentials\nfor you")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "isfile", refuse)
    with pytest.raises(UserError, match=r"^memory:..x.a\.tar cannot be reached \(RuntimeError: no credentials for you"):
        match_files("memory://x", "a.tar", "data.train", "tar")


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}", "{0..9}" * 9, "{1..1}" * 3000 + "{0..1000000}", "{0.." + "9" * 5000 + "}"]
)
def test_names_that_braces_stand_for_are_counted_before_they_are_made(pattern: str) -> None:
    with pytest.raises(UserError, match=r"names, more than 1,000,000; give fewer, or a pattern with \*$"):
        expand_braces(pattern)


def test_a_range_that_counts_down_is_refused_and_braces_without_a_choice_are_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stands for no name: a range counts up, \{0\.\.9\}; give"):
        expand_braces("a{5..2}")
    assert expand_braces("a{x}-{1..2}") == ["a{x}-1", "a{x}-2"]


def test_two_stars_enter_each_folder_once_and_a_file_counts_once_whatever_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("t-0.tar", "deep/t-1.tar", "deep/deeper/t-2.tar", "deep/u-3.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for loop in ("loop", "deep/loop", "deep/deeper/loop"):
        (tmp_path / loop).symlink_to(tmp_path)
    expected = [f"{tmp_path}/{name}" for name in ("deep/deeper/t-2.tar", "deep/t-1.tar", "t-0.tar")]
    assert match_files(str(tmp_path), "**/t-*.tar", "data.train", "tar") == expected
    assert match_files(str(tmp_path), "deep/**/t-*.tar", "data.train", "tar") == expected[:2]
    (tmp_path / "t-9.tar").symlink_to("t-0.tar")
    assert match_files(str(tmp_path), "t-*.tar", "data.train", "tar") == expected[2:]
    assert "1 names lead to files that others name already" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["a[0-9]", "b*", "c?{x,y}"])
def test_marks_of_patterns_in_the_name_of_a_folder_are_part_of_the_name(tmp_path: Path, folder: str) -> None:
    for each in (folder, "a1", "bb", "cxx"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "t-0.tar").write_bytes(b"x")
    for pattern in ("t-*.tar", "**/t-0.tar", "t-{0..0}.tar"):
        assert match_files(str(tmp_path / folder), pattern, "data.train", "tar") == [f"{tmp_path}/{folder}/t-0.tar"]


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    for read in (lambda path: open_file(path), lambda path: read_range(path, 0, 1), lambda path: file_stamps([path])):
        with pytest.raises(OSError, match=r"a\.tar is a FIFO, not a regular file$"):
            read(str(tmp_path / "a.tar"))
    with pytest.raises(UserError, match=r"matches no file"):
        match_files(str(tmp_path), "a.tar", "data.train", "tar")

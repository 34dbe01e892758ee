"""Files that are read: regular ones alone, as text or one line that says why not."""

import ast
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from unlabeled.core.reading import name_inside, open_regular, read_text, require_regular, shown_path
from unlabeled.data.labels import LabelSelection
from unlabeled.data.sources.digits import digits
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import TensorCache


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the name of a socket must be short
        server.bind(path.name)


OTHERS: dict[str, Callable[[Path], object]] = {
    "a FIFO": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": make_socket,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_regular_file_is_refused_by_its_kind_and_never_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    OTHERS[kind](path)
    with pytest.raises(OSError, match=rf"x is {kind}, not a regular file$"):
        require_regular(path)
    with pytest.raises(OSError, match=r"(x is .*, not a regular file|No such device or address.*)$"):
        open_regular(path)
    with pytest.raises(UserError, match=r"^key=x: .*"):
        read_text(path, "key=x")


def test_a_link_to_a_regular_file_is_one_and_its_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + "käse\r\n".encode())
    (tmp_path / "link").symlink_to("file")
    assert require_regular(tmp_path / "link").st_size == 10
    with open_regular(tmp_path / "link") as file:
        assert file.read(5) == b"\xef\xbb\xbfk\xc3"
    assert read_text(tmp_path / "link", "key=x") == "käse\r\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [("größe".encode("latin-1"), "byte 2 is no UTF-8; save the list"), (b"x" * 99, "has more than 50 bytes")],
)
def test_text_that_is_none_or_too_long_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=rf"^key=x: .*{words}"):
        read_text(tmp_path / "x", "key=x", most=50)
    with pytest.raises(UserError, match=r"^key=y: no such file$"):
        read_text(tmp_path / "y", "key=y")


def test_names_are_shown_in_one_printable_line() -> None:
    assert shown_path("/a/größe 1.png") == "/a/größe 1.png"
    assert shown_path(b"\xff\x1b[31m\n.png") == r"\xff\x1b[31m\n.png"
    assert shown_path("\u202egnp.exe") == r"\u202egnp.exe"
    assert len(shown_path("x" * 10_000)) == 401


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "a\\..\\..\\b", 7, None, "s3://a", "a::b"]
)
def test_a_name_that_a_file_gives_never_leads_out_of_its_folder(name: object) -> None:
    with pytest.raises(UserError, match=r"^index\.json names .*, which is no file below its folder; make it anew$"):
        name_inside(name, "index.json")
    assert name_inside("a/chunk..0.bin", "index.json") == "a/chunk..0.bin"


@pytest.mark.parametrize("kind", OTHERS)
def test_lists_of_labels_and_kept_features_that_are_no_regular_files_do_not_hang(kind: str, tmp_path: Path) -> None:
    OTHERS[kind](tmp_path / "labels.txt")
    choice = LabelSelection(str(tmp_path / "labels.txt"), None, None, 0, "objective.support")
    with pytest.raises(UserError, match=r"^objective\.support\.labels_file=.*labels\.txt: "):
        choice.of(digits(8).train)
    if kind == "a folder":
        return
    cache, key = TensorCache(str(tmp_path / "cache"), 1.0), {"of": "x"}
    cache.put(key, {"x": torch.zeros(1)})
    (file,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    file.unlink()
    OTHERS[kind](file)
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.append(cache.get(key)), daemon=True)
    reader.start()
    reader.join(20)
    assert found == [None]


# Who opens for reading besides reading.py, and why it cannot be a stranger's file
OWN = {
    "cache.py": "the source files of this package",
    "doctor.py": "/proc",
    "environment.py": "/proc, and what the same process has made as JSON",
    "help.py": "the yamls of a command",
    "new.py": "its own templates",
    "page.py": "its own style",
    "preflight.py": "the source files of this package",
    "rendezvous.py": "what other processes of the run send",
    "run_lock.py": "/proc",
    "self_test.py": "its own numbers",
    "shared_memory.py": "/proc, and a file in shared memory that it made",
    "signatures.py": "source files",
    "template.py": "the templates of this package",
    "verdict.py": "/proc",
    "index.py": "the note of a table that was checked",
    "extractor.py": "the note of kept features that were checked",
    "table_text.py": "what it has made itself as JSON",
    "table.py": "what it has made itself as JSON",
    "part_file.py": "what it has made itself as JSON",
}


def reads(path: Path) -> list[str]:
    """Calls that open a file for reading, or parse JSON whose depth may have no end."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        modes = [each.value for each in node.args if isinstance(each, ast.Constant) and each.value in ("r", "rb", "rt")]
        if name.endswith((".read_text", ".read_bytes")) or name in ("json.loads", "json.load"):
            found.append(name)
        if name == "open" and (modes or len(node.args) == 1):
            found.append(name)
        if name.endswith(".open") and modes and not name.startswith(("system", "os")):
            found.append(name)
    return found


def test_files_are_opened_for_reading_at_one_place() -> None:
    sources = [path for path in (ROOT / "ssl").rglob("*.py") if path.parent.name != "skeletons"]
    elsewhere = {path.name: reads(path) for path in sources if path.name not in (*OWN, "reading.py", "parsing.py")}
    assert {name: calls for name, calls in elsewhere.items() if calls} == {}

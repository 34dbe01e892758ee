"""Notes and tags of a run: kept as data in its folder, taken from the server's own page alone."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.health.dashboard.test_watch_runs import make_run
from unlabeled.errors import UserError
from unlabeled.health.dashboard.listing import RunListing
from unlabeled.health.dashboard.notes import LONGEST, MOST_BYTES, kept_notes, read_request, write_notes
from unlabeled.health.dashboard.server import Server

GIVEN = {"note": "<b>keep</b>\nsecond line", "tags": ["base line", "paper"]}
OWN = {"X-Unlabeled": "notes", "Content-Type": "application/json", "Origin": "http://localhost:9"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    make_run(folder / "outputs" / "run")
    return folder / "outputs"


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with Server(RunListing(root), 0) as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield serving
        serving.shutdown()


def post(server: Server, body: bytes, path: str = "/api/notes?of=run", **headers: str | None) -> int:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    named = {"Host": "localhost:9", **OWN} | {name.replace("_", "-"): value for name, value in headers.items()}
    kept = {name: value for name, value in named.items() if value is not None}
    connection.request("POST", path, body, kept)
    status = connection.getresponse().status
    connection.close()
    return status


def test_what_the_page_sends_is_kept_and_listed_with_the_run(server: Server, root: Path) -> None:
    server.listing.changes("")
    assert post(server, json.dumps(GIVEN).encode()) == 200
    assert json.loads((root / "run" / "notes.json").read_text()) == GIVEN
    run = server.listing.changes("")["runs"]["run"]
    assert (run["note"], run["tags"], run["problems"]) == (GIVEN["note"], GIVEN["tags"], [])
    assert post(server, json.dumps(GIVEN).encode(), "/api/notes?of=none") == 404
    assert post(server, json.dumps(GIVEN).encode(), "/api/notes?of=..") == 404
    assert post(server, json.dumps(GIVEN).encode(), "/api/runs") == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Unlabeled": None},
        {"Content_Type": "text/plain"},  # what a form of another page can send
        {"Origin": "http://evil.example"},
        {"Origin": "null"},  # a report in its sandbox
        {"Origin": None},
        {"Origin": "http://localhost:10"},  # another server of this machine
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
def test_no_other_page_can_write_a_note(server: Server, root: Path, headers: dict[str, str | None]) -> None:
    before = (root / "run" / "notes.json").exists() and (root / "run" / "notes.json").read_bytes()
    assert post(server, b'{"note": "from elsewhere", "tags": []}', "/api/notes?of=run", **headers) == 403
    assert before == ((root / "run" / "notes.json").exists() and (root / "run" / "notes.json").read_bytes())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"[" * 20_000,
        b'{"note": "x"}',
        b'{"note": "x", "tags": [], "path": "/etc/passwd"}',
        b'{"note": 3, "tags": []}',
        b'{"note": "", "tags": "a"}',
        b'{"note": "", "tags": [1]}',
        json.dumps({"note": "x" * (LONGEST + 1), "tags": []}).encode(),
        json.dumps({"note": "", "tags": ["x" * 41]}).encode(),
        json.dumps({"note": "", "tags": ["x"] * 21}).encode(),
        "\ud800".encode(errors="surrogatepass"),
    ],
)
def test_what_is_no_note_is_refused(server: Server, body: bytes) -> None:
    server.listing.changes("")
    assert post(server, body) == 400


def test_a_request_that_is_too_long_is_not_read(server: Server) -> None:
    assert post(server, b"x" * (MOST_BYTES + 1)) == 413
    assert post(server, b"{}", Content_Length="-1") == 413


def test_a_note_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.json").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"notes\.json of this run is no regular file"):
        write_notes(tmp_path / "run", GIVEN)
    assert (tmp_path / "precious").read_text() == "precious"


def test_tags_are_words_of_one_line_and_a_file_of_anybody_is_cut_to_its_limits() -> None:
    assert read_request(b'{"note": " x ", "tags": [" a\\nb ", "a b", "", "\\u202ec"]}') == {
        "note": "x",
        "tags": ["a b", "c"],
    }
    hostile = {"note": ["x"], "tags": ["y" * 99, 3, {"z": 1}, *(str(number) for number in range(50))]}
    kept = kept_notes(hostile)
    assert kept["note"] == ""
    assert (len(kept["tags"]), kept["tags"][0]) == (20, "y" * 40)
    assert kept_notes(None) == {"note": "", "tags": []}

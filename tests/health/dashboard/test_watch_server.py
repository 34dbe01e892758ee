"""The server of the page: this machine's browsers alone, one folder alone, and nothing is written but notes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from unlabeled.errors import UserError
from unlabeled.health.dashboard.listing import RunListing
from unlabeled.health.dashboard.page import SCRIPTS
from unlabeled.health.dashboard.server import Server

ROOT = Path(__file__).parents[3]
SECRET = "what nobody may read"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs, one of a name that is HTML; and, beside their folder, what must stay unread."""
    (tmp_path / "secret.html").write_text(SECRET)
    for name in ("run", "<script>alert(1)<", "run/report"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
    for name in ("run", "<script>alert(1)<"):
        (tmp_path / "outputs" / name / "config.yaml").write_text("objective: {_target_: a.<img onerror=alert(1)>}\n")
    report = tmp_path / "outputs" / "run" / "report"
    (report / "report.html").write_text("<script>parent.document</script>")
    (report / "plot.png").write_bytes(b"PNG")
    (report / "key.pem").write_text(SECRET)
    (report / "out.html").symlink_to(tmp_path / "secret.html")
    (tmp_path / "outputs" / "run" / "away").symlink_to(tmp_path)
    return tmp_path / "outputs"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(RunListing(folder), 0) as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield serving
        serving.shutdown()


def ask(server: Server, path: str, method: str = "GET", host: str | None = "localhost:9") -> tuple[HTTPResponse, bytes]:
    """The path goes out as it is, without a browser's tidying."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_it_listens_on_the_loopback_address_alone(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"
    others = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in [*others, "127.0.0.2"]:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address), server.server_port), timeout=5)


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.html",
        "/files/run/../../secret.html",
        "/files/%2e%2e/secret.html",
        "/files/run/%2e%2e%2f%2e%2e%2fsecret.html",
        "/files/..%5csecret.html",
        "/files/%252e%252e/secret.html",
        "/files//secret.html",
        "/files/{outside}/secret.html",
        "/files/%2F{outside}/secret.html",
        "/files/run/report/out.html",
        "/files/run/away/secret.html",
        "/files/run/report/key.pem",
        "/files/run/report",
        "/files/run/config.yaml",
        "/files/run/report/report.html%00.png",
        "/files/" + "a" * 5000 + ".html",
        "/files/",
        "/../secret.html",
        "/secret.html",
        "/api/run?of=../",
        "/api/run?of=%2e%2e",
        "/api/run",
        "/watch.css",
        "/watch.js/../server.py",
        "//127.0.0.1/files/run/report/report.html",
    ],
)
def test_nothing_outside_of_the_folder_is_served_however_it_is_asked_for(
    server: Server, tmp_path: Path, path: str
) -> None:
    answer, body = ask(server, path.replace("{outside}", str(tmp_path)))
    assert answer.status == 404
    assert SECRET.encode() not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example:1", "", None, "localhost.:1"]
)
def test_a_name_that_somebody_points_at_this_machine_is_refused(server: Server, host: str | None) -> None:
    for path in ("/", "/api/runs", "/files/run/report/report.html"):
        answer, body = ask(server, path, host=host)
        assert answer.status == 403
        assert len(body) < 100


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:8765", "localhost", "127.0.0.1"])
def test_any_port_of_this_machine_will_do_since_a_tunnel_may_change_it(server: Server, host: str) -> None:
    assert ask(server, "/api/runs", host=host)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get_and_head_are_answered(server: Server, method: str) -> None:
    answer, _ = ask(server, "/api/runs", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_its_body(server: Server) -> None:
    for path in ("/", "/api/run?of=run", "/files/run/report/plot.png", "/watch.js"):
        got, body = ask(server, path)
        head, nothing = ask(server, path, "HEAD")
        assert (got.status, head.status, nothing) == (200, 200, b"")
        assert got.headers["Content-Length"] == head.headers["Content-Length"] == str(len(body))


def test_no_answer_lets_another_page_read_it_or_a_script_of_a_run_do_anything(server: Server) -> None:
    for path in ("/", "/api/runs", "/api/run?of=run", "/files/run/report/report.html", "/none", "/watch.js"):
        answer, _ = ask(server, path)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe-inline" not in answer.headers["Content-Security-Policy"].replace("style-src 'unsafe-inline'", "")
    report, body = ask(server, "/files/run/report/report.html")
    assert report.headers["Content-Security-Policy"].startswith("sandbox; ")
    assert body == b"<script>parent.document</script>"
    page, body = ask(server, "/")
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert b"http://" not in body
    assert b"https://" not in body


def test_the_scripts_of_the_page_have_less_than_forty_kilobytes_and_ask_for_no_other(server: Server) -> None:
    names = sorted(SCRIPTS)
    sent = [ask(server, name)[1] for name in names]
    assert names == ["/charts.js", "/chosen.js", "/list.js", "/notes.js", "/parts.js", "/table.js", "/watch.js"]
    assert sum(map(len, sent)) < 40_000
    imported = {name for body in sent for name in re.findall(rb'^import .* from "(.*)";$', body, re.MULTILINE)}
    assert {name.decode() for name in imported} <= set(names)


def test_what_runs_wrote_goes_out_as_json_and_a_damaged_one_never_as_an_error(server: Server, folder: Path) -> None:
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1, "train/loss": NaN}\n{"step": 2, "train/loss": 1e999}\n')
    os.mkfifo(folder / "run" / "state.json")  # to open it would wait forever
    answer, body = ask(server, "/api/runs")
    assert answer.headers["Content-Type"] == "application/json"
    content = json.loads(body, parse_constant=lambda word: pytest.fail(word))
    assert [run["name"] for run in content["runs"].values()] == ["<script>alert(1)<", "run"]
    for address in content["addresses"]:
        answer, body = ask(server, f"/api/run?of={address}")
        assert answer.status == 200
    assert json.loads(body)["curves"] == {"train/loss": [[1, None], [2, None]]}


def test_a_port_that_is_taken_is_said_in_one_line_and_by_default_the_next_is_used(folder: Path) -> None:
    with Server(RunListing(folder), None) as first, Server(RunListing(folder), None) as second:
        assert second.server_port > first.server_port >= 8765
        with pytest.raises(UserError, match=f"--port {first.server_port}: cannot be listened at .*in use"):
            Server(RunListing(folder), first.server_port)


def command(*arguments: str) -> "subprocess.Popen[str]":
    code = "import sys; sys.modules['torch'] = None; import runpy; "
    code += "runpy.run_module('unlabeled.commands.watch', run_name='__main__', alter_sys=True)"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "ssl")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_prints_its_address_and_ends_with_ctrl_c_without_torch_or_a_traceback(folder: Path) -> None:
    process = command(str(folder), "--port", "0")
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith(f"{folder} is shown at http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=10)
    assert (process.returncode, out.strip(), error) == (0, "", "")


def test_a_mistake_in_the_command_is_one_line(folder: Path) -> None:
    (folder / "file").write_text("")
    with Server(RunListing(folder), 0) as taken:
        wrong = {
            ("outputz",): "outputz: no such folder",
            (str(folder / "file"),): "is a file",
            (str(folder), "--port", "99999"): "--port 99999: must be between",
            (str(folder), "--port", str(taken.server_port)): f"--port {taken.server_port}: cannot be listened at",
            (str(folder), "--prot", "1"): "unrecognized arguments: --prot 1",
            (): "the following arguments are required: folder",
        }
        for arguments, process in [(arguments, command(*arguments)) for arguments in wrong]:
            out, error = process.communicate(timeout=20)
            assert (process.returncode, out) == (2, "")
            assert error.startswith("error: ")
            assert wrong[arguments] in error
            assert error.count("\n") == 1


def test_two_hundred_requests_at_once_are_all_answered(server: Server) -> None:
    start, answers = threading.Barrier(200), list[int]()

    def request() -> None:
        start.wait()
        answers.append(ask(server, "/api/runs")[0].status)

    threads = [threading.Thread(target=request) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 200
    assert server.request_queue_size >= 200

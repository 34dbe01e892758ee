"""Serves the page over HTTP to browsers on this machine; reads only one folder, and writes only notes of its runs.

A web page can make a browser send requests to 127.0.0.1, but not read the answers: no header allows it, and other host
names that point to 127.0.0.1 (DNS rebinding) are refused by the Host header. A note is taken from our own page alone:
it comes as JSON with a header that no other page may send without asking first, and OPTIONS is answered with 405.
"""

import json
import os
import shutil
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from unlabeled.core.reading import open_regular
from unlabeled.errors import UserError
from unlabeled.health.dashboard.listing import RunListing
from unlabeled.health.dashboard.notes import MOST_BYTES, read_request
from unlabeled.health.dashboard.page import ICON, POLICY, SCRIPTS, page

ADDRESS, PORT, TRIED = "127.0.0.1", 8765, 20  # how many ports are tried, from PORT on, if none is given
NAMES = {"127.0.0.1", "localhost"}  # with any port: ssh -L may use another one
# A report may come from anybody: its page gets no script, no network, no origin
FOREIGN = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TYPES = {".html": "text/html; charset=utf-8", ".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


class Server(ThreadingHTTPServer):
    """Serves one listing.

    Args:
        listing: the runs that are served.
        port: to listen on; None: the first free one of a few; 0: any free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = 1024  # pending connections; Python's default of 5 lost 9 of 200 simultaneous ones

    def __init__(self, listing: RunListing, port: int | None) -> None:
        self.listing = listing
        ports = range(PORT, PORT + TRIED) if port is None else [port]
        for each in ports:
            try:
                super().__init__((ADDRESS, each), Handler)
                return
            except OSError as error:
                refused = error
        named = f"--port {port}" if port is not None else f"ports {PORT} to {PORT + TRIED - 1}"
        raise UserError(f"{named}: cannot be listened at ({refused.strerror}); give --port with another number")

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        self.listing.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores browsers that close a connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds until an idle connection is closed
    wbufsize = -1  # sends head and body together: else the body waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in NAMES and self.headers.get("Host") not in NAMES:
            self._send_text(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost alone")
            return
        path, _, query = self.path.partition("?")
        if path == "/":
            self._send(page(), "text/html; charset=utf-8", POLICY)
        elif path in SCRIPTS:
            self._send(SCRIPTS[path], "text/javascript; charset=utf-8")
        elif path == "/favicon.ico":
            self._send(ICON, "image/svg+xml")
        elif path == "/api/runs":
            self._send_json(self.server.listing.changes(query.removeprefix("since=")))
        elif path == "/api/run":
            self._send_json(self.server.listing.detail(query.removeprefix("of=")))
        elif path.startswith("/files/"):
            self._send_file(self.server.listing.file(path.removeprefix("/files/")))
        else:
            self._send_json(None)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.close_connection = True  # the request's body may not be read
        path, _, query = self.path.partition("?")
        if path != "/api/notes":
            self._refuse()
        elif not self._is_of_own_page():
            self._send_text(HTTPStatus.FORBIDDEN, "notes are taken from the page of this server alone")
        else:
            self._take_notes(query.removeprefix("of="))

    def _take_notes(self, address: str) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > MOST_BYTES:
            self._send_text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a note has at most {MOST_BYTES:,} bytes")
            return
        try:
            found = self.server.listing.annotate(address, read_request(self.rfile.read(int(length))))
        except UserError as error:
            self._send_text(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._send_json({} if found else None)

    def _is_of_own_page(self) -> bool:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin", "")
        named = host in NAMES or host.rpartition(":")[0] in NAMES
        asked = self.headers.get("X-Unlabeled") == "notes" and self.headers.get_content_type() == "application/json"
        return named and asked and origin == f"http://{host}"

    def _refuse(self) -> None:
        self.close_connection = True
        self._send_text(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD alone", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def _send_json(self, content: dict[str, Any] | None) -> None:
        if content is None:
            self._send_text(HTTPStatus.NOT_FOUND, "there is no such page, run or file")
        else:
            self._send(json.dumps(content, allow_nan=False, separators=(",", ":")).encode(), "application/json")

    def _send_text(self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> None:
        self._send(f"{text}\n".encode(), "text/plain; charset=utf-8", status=status, headers=headers)

    def _send_file(self, path: Path | None) -> None:
        if path is None:
            self._send_json(None)
            return
        with open_regular(path) as file:
            self._head(HTTPStatus.OK, os.fstat(file.fileno()).st_size, TYPES[path.suffix], FOREIGN)
            if self.command == "GET":
                shutil.copyfileobj(file, self.wfile)

    def _send(
        self,
        body: bytes,
        kind: str,
        policy: str = "default-src 'none'",
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._head(status, len(body), kind, policy, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(
        self, status: HTTPStatus, length: int, kind: str, policy: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        always = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in {**always, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        return "unlabeled"

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: the terminal shows the address only."""

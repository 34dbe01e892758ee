"""A page of all runs, for a browser on this machine: ``unlabeled watch outputs/ [--port N]``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from unlabeled.errors import UserError
from unlabeled.health.dashboard.listing import RunListing
from unlabeled.health.dashboard.server import PORT, Server

REMOTE = """A run on another machine: start this there, and on your own machine
  ssh -L 8765:127.0.0.1:8765 MACHINE
then open http://127.0.0.1:8765/."""


class OneLineParser(argparse.ArgumentParser):
    """Says a mistake in one line, as the other commands do."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def make_listing(folder: str) -> RunListing:
    """Raises UserError for what is no folder."""
    path = Path(folder).expanduser()
    if not os.path.isdir(path):
        reason = (
            "is a file; give the folder of runs" if os.path.exists(path) else "no such folder; runs are in outputs/"
        )
        raise UserError(f"{folder}: {reason}")
    return RunListing(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C; ``arguments`` are those that were typed unless others are given."""
    parser = OneLineParser(
        prog="unlabeled watch",
        description="Serves a page of all runs below a folder, to browsers of this machine alone.",
        epilog=REMOTE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="where runs are, at any depth: outputs/")
    parser.add_argument("--port", type=int, help=f"to listen at; without it the first free one from {PORT} on")
    given = parser.parse_args(arguments)
    if given.port is not None and not 0 <= given.port < 1 << 16:
        parser.error(f"--port {given.port}: must be between 0, which takes a free one, and 65535")
    try:
        server = Server(make_listing(given.folder), given.port)
    except UserError as error:
        parser.error(str(error))
    try:
        print(f"{server.listing.root} is shown at {server.url} to browsers of this machine; Ctrl-C ends it", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


if __name__ == "__main__":
    main()

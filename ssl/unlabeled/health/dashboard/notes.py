"""Reads and writes the note and the tags that a user gives to a run: data in ``notes.json`` of its folder."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlabeled.core.parsing import parse_json
from unlabeled.core.writing import write_atomic
from unlabeled.errors import UserError

FILE = "notes.json"
LONGEST, MOST_TAGS, LONGEST_TAG = 5_000, 20, 40  # characters of a note, tags, characters of a tag; our choice
MOST_BYTES = 40_000  # of a request: a note of four bytes a character, and the tags


def kept_notes(content: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns note and tags of a file that anybody may have written, cut to what a page can show."""
    note, tags = (content or {}).get("note"), (content or {}).get("tags")
    known = [_printable(tag)[:LONGEST_TAG] for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return {"note": note[:LONGEST] if isinstance(note, str) else "", "tags": [tag for tag in known if tag][:MOST_TAGS]}


def read_request(body: bytes) -> dict[str, Any]:
    """Reads what a page sends. Raises UserError where it holds anything but a note and tags within their limits."""
    try:
        given = parse_json(body)
    except ValueError:
        given = None
    if not isinstance(given, dict) or set(given) != {"note", "tags"}:
        raise UserError("give JSON with the keys note and tags")
    note, tags = given["note"], given["tags"]
    if not isinstance(note, str) or len(note) > LONGEST:
        raise UserError(f"note: must be text of at most {LONGEST:,} characters")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags) or len(tags) > MOST_TAGS:
        raise UserError(f"tags: must be a list of at most {MOST_TAGS} words")
    if any(len(tag) > LONGEST_TAG for tag in tags):
        raise UserError(f"tags: each must have at most {LONGEST_TAG} characters")
    words = dict.fromkeys(_printable(tag) for tag in tags)
    return {"note": note.strip(), "tags": [word for word in words if word]}


def write_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    """Writes ``notes.json``. Raises UserError: it is a link or no file, which could lead elsewhere, or cannot be
    written.
    """
    path = folder / FILE
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UserError(f"{FILE} of this run is no regular file, and is not written to")
    except FileNotFoundError:
        pass
    write_atomic(path, json.dumps(dict(notes), indent=1, ensure_ascii=False) + "\n")


def _printable(tag: str) -> str:
    """Returns a tag in one line, without signs that cannot be seen."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in tag.replace(",", " ")).split())

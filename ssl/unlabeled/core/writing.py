"""Text files that are there whole or not at all."""

import os
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """All or nothing: a kill while writing leaves the old file."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")  # paths may hold bytes that are no UTF-8
    os.replace(unfinished, path)

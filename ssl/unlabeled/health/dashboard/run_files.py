"""Finds the pages and pictures of a run that a browser may look at."""

import os
import re
from pathlib import Path

KINDS, STEPS = 24, 200  # kinds of pictures, and steps of a kind that are shown, evenly over the run
_STEP = re.compile(r"(.+)-step-(\d{1,15})\.png")


def files_below(folder: Path, pattern: str) -> list[str]:
    """Returns files one folder deeper, the newest last; no links, and no pictures that the report contains."""
    folders = [Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    files = [path for below in folders for path in below.glob(pattern) if not path.is_symlink()]
    if pattern == "*.png":
        files = [path for path in files if path.parent.name != "report" or path.name.startswith("representation")]
    return [path.relative_to(folder).as_posix() for path in sorted(files, key=os.path.getmtime)]


def pictures_by_kind(folder: Path) -> dict[str, list[tuple[int | None, str]]]:
    """Returns step and file of the pictures of each kind, by step; a picture without a step is a kind of its own."""
    found: dict[str, list[tuple[int | None, str]]] = {}
    for file in files_below(folder, "*.png"):
        name = _STEP.fullmatch(file)
        kind, step = (name[1], int(name[2])) if name else (file.removesuffix(".png"), None)
        found.setdefault(kind.removeprefix("pictures/"), []).append((step, file))
    return {kind: _evenly(sorted(found[kind], key=lambda each: each[0] or 0)) for kind in sorted(found)[:KINDS]}


def _evenly(pictures: list[tuple[int | None, str]]) -> list[tuple[int | None, str]]:
    if len(pictures) <= STEPS:
        return pictures
    return [pictures[round(number * (len(pictures) - 1) / (STEPS - 1))] for number in range(STEPS)]

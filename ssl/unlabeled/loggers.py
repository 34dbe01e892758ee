"""``metrics.jsonl``: one object a line, appended and never rewritten. The other loggers mirror it."""

import json
import os
import secrets
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


def kept_id(path: Path) -> str:
    """A random name that is the same whenever the run is started: drawn by its first process, and kept in a file."""
    if not path.exists():
        _draw_id(path)
    return path.read_text().strip() if path.exists() else ""


@rank_zero_only
def _draw_id(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(secrets.token_hex(8) + "\n")


class JsonLines(Logger):
    """Appends ``{"step": …, "epoch": …, name: value, …}`` for every set of metrics.

    Args:
        path: the file; its folder must exist. (Lightning's CSVLogger deletes its file when a run resumes.)
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def sync(self) -> int:
        """Wait until all lines are on the disk, and return how many bytes they are."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Keep the first ``size`` bytes: what was written when a state was, and not what came after it."""
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < size:
            print(f"warning: {self.path} has {there:,} bytes and had {size:,} at the checkpoint: lines are lost")
        elif there > size:
            os.truncate(self.path, size)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in ``config.yaml`` beside the file."""

"""Cache of extracted features, so that a second evaluation of the same weights reads no image."""

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlabeled.core.reading import require_regular
from unlabeled.core.writing import save_safetensors
from unlabeled.data.lists.index import user_cache
from unlabeled.errors import UserError

Key = dict[str, Any]  # plain JSON values: everything that decides the features
PACKAGE = Path(__file__).parents[1]
CODE = ("backbones", "views", "data", "evaluation/features.py")  # code that features depend on: its hash is in the key


class TensorCache:
    """Stores named tensors by key, one safetensors file each, in a folder of limited size.

    Args:
        folder: made at first use; ``~`` is the home folder.
        gib: most GiB of all files; the least recently used are deleted first. 0: nothing is stored or read.
    """

    def __init__(self, folder: str, gib: float) -> None:
        if gib < 0:
            raise UserError(f"cache_gib={gib}: must be 0 (keep nothing) or more")
        self.folder, self.bytes = Path(folder).expanduser(), int(gib * 2**30)

    def get(self, key: Key) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Returns tensors and notes stored under ``key``, or None; a damaged file is removed and counts as none."""
        file = self._file(key)
        if not self.bytes or not os.path.isfile(file):  # Path.is_file would raise in a folder without permission
            return None
        try:
            require_regular(file)
            with safe_open(file, "pt") as opened:
                notes = dict(opened.metadata())
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
            intact = notes.pop("key") == _text(key) and notes.pop("sha256") == _digest(tensors)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            intact = False
        if not intact:
            print(f"{file} is damaged: it is removed and computed again")
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(file)
        return tensors, notes

    def put(self, key: Key, tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> None:
        """Stores tensors under ``key``; prints a warning and goes on if the folder cannot be written to."""
        size = sum(values.numel() * values.element_size() for values in tensors.values())
        if size > self.bytes:
            return
        file = self._file(key)
        kept = {name: values.contiguous() for name, values in tensors.items()}
        try:
            self._make_room(size)
            save_safetensors(file, kept, {**(notes or {}), "key": _text(key), "sha256": _digest(kept)})
        except OSError as error:
            print(f"features cannot be kept in {self.folder} ({error}); cache=… gives another folder")

    def _file(self, key: Key) -> Path:
        return self.folder / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.safetensors"

    def _make_room(self, size: int) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        total = size + sum(file.stat().st_size for file in files)
        for file in files:
            if total <= self.bytes:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)


def cache_folder(given: str | None) -> str:
    """Returns the folder of the key ``cache``; None: ``features`` in the user's cache."""
    return given or str(user_cache() / "features")


@cache
def code_hash() -> str:
    """Returns the SHA-256 of the source files that decide the values of features."""
    digest = hashlib.sha256()
    for place in CODE:
        path = PACKAGE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _text(key: Key) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

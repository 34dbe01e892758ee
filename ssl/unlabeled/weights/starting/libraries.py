"""Weights that another library has: ``timm:NAME``, ``torchvision:NAME[:WEIGHTS]`` and ``hf:ORG/NAME``.

They come from that library's cache on this machine, or by its own download, once, where the machine is online. Only the
command line names them: no file does.
"""

import difflib
import hashlib
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from unlabeled.core.reading import open_regular
from unlabeled.core.writing import make_folder
from unlabeled.errors import UserError
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.load import checkpoint_of, read_checkpoint

SECONDS = 1.5  # that a server may take to answer at all, before the machine counts as offline (our choice)
FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")  # of a repository, the best first


def read_from_library(origin: str) -> Checkpoint | None:
    """Reads the weights that ``origin`` names, as a checkpoint with their hash; None where it names no library.

    Raises:
        UserError: the library has no such weights, or they are not in its cache and cannot be downloaded.
    """
    library, colon, name = origin.partition(":")
    reader = READERS.get(library)
    return reader(origin, name) if colon and reader else None


def _timm(origin: str, name: str) -> Checkpoint:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"weights={origin}: timm has no such model{_close(architecture, timm.list_models())}")
    published = timm.models.get_pretrained_cfg(name) if timm.models.is_model_pretrained(name) else None
    if published is None:
        known = timm.list_pretrained(f"{architecture}*")
        raise UserError(f"weights={origin}: timm has no such weights{_close(name, known)}")
    if published.hf_hub_id:
        file = hub_file(origin, published.hf_hub_id, published.hf_hub_filename)
    elif published.url:
        file = _torch_file(origin, published.url)
    else:
        raise UserError(f"weights={origin}: timm does not say where these weights are")
    # Named by the file: timm then looks nothing up, and changes old names into its own as always.
    network = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(file)})
    return checkpoint_of(dict(network.state_dict()), Path(origin), _sha256(file))


def _torchvision(origin: str, name: str) -> Checkpoint:
    import torchvision

    model, _, wanted = name.partition(":")
    known = torchvision.models.list_models(torchvision.models)
    if model not in known:
        raise UserError(f"weights={origin}: torchvision has no such classification model{_close(model, known)}")
    weights = torchvision.models.get_model_weights(model)
    names = [each.name for each in weights]
    if wanted and wanted not in names:
        raise UserError(f"weights={origin}: {model} has {', '.join(names)}")
    if not names:
        raise UserError(f"weights={origin}: torchvision has no weights of {model}")
    file = _torch_file(origin, (weights[wanted] if wanted else weights.DEFAULT).url)
    return _called(read_checkpoint(file), origin)


def _huggingface(origin: str, name: str) -> Checkpoint:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name, re.ASCII):
        raise UserError(f"weights={origin}: must be hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    return _called(read_checkpoint(hub_file(origin, name, None)), origin)


READERS: Mapping[str, Callable[[str, str], Checkpoint]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _huggingface,
}


def _called(checkpoint: Checkpoint, origin: str) -> Checkpoint:
    checkpoint.path = Path(origin)
    return checkpoint


def hub_file(origin: str, repository: str, file: str | None) -> Path:
    """A file of the Hugging Face Hub, from its cache where it is there."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = repository.partition("@")
    names = FILES if file is None else (file,)
    for name in names:
        cached = try_to_load_from_cache(repository, name, constants.HF_HUB_CACHE, revision or None)
        if isinstance(cached, str):
            return Path(cached)
    _require_online(origin, constants.ENDPOINT, constants.HF_HUB_CACHE, offline=constants.HF_HUB_OFFLINE)
    for name in names:
        try:
            with suppress(EntryNotFoundError):
                return Path(hf_hub_download(repository, name, revision=revision or None))
        except Exception as error:  # of any library below
            raise UserError(f"weights={origin}: {repository} cannot be downloaded: {_first_line(error)}") from error
    raise UserError(f"weights={origin}: {repository} holds none of {', '.join(names)}")


def _torch_file(origin: str, url: str) -> Path:
    """A file that torch.hub keeps, whose name ends in the beginning of its hash, which is verified."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / os.path.basename(url)
    if not os.path.exists(path):
        _require_online(origin, url, str(folder))
        make_folder(folder)
        try:
            torch.hub.download_url_to_file(url, str(path), _hash_in(path), progress=False)
        except Exception as error:  # of any library below
            raise UserError(f"weights={origin}: {url} cannot be downloaded: {_first_line(error)}") from error
    return path


def _hash_in(path: Path) -> str | None:
    found = re.search(r"-([a-f0-9]{8,})\.", path.name)
    return found[1] if found else None


def _require_online(origin: str, url: str, cache: str, offline: bool = False) -> None:
    if offline or not is_online(url):
        raise UserError(
            f"weights={origin}: not in {cache}, and this machine is offline: give a file, or fetch them once where "
            "there is a network and copy that folder"
        )


def is_online(url: str) -> bool:
    """Tells whether the server of a URL answers within two seconds, looking its name up included."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS + 0.2)
    return answered.is_set()


def _sha256(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _close(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""

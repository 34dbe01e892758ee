"""Caches of other libraries, made here: no test downloads anything."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn


def without_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Caches below ``folder`` alone, and servers that nobody answers for."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "torch"))
    monkeypatch.setattr(socket, "create_connection", _refused)
    return folder


def _refused(*given: Any, **named: Any) -> None:
    raise ConnectionRefusedError


def hub_cache(folder: Path, repository: str, network: nn.Module, config: Any = None) -> Path:
    """Puts a repository into the Hub's cache; returns its file of weights."""
    place = folder / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    save_file(network.state_dict(), place / "snapshots" / "abc" / "model.safetensors")
    if config is not None:
        (place / "snapshots" / "abc" / "config.json").write_text(json.dumps(config))
    return place / "snapshots" / "abc" / "model.safetensors"


def torch_cache(folder: Path, name: str, network: nn.Module) -> None:
    """Puts a file into the folder where torch.hub keeps them."""
    (folder / "torch" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "torch" / "checkpoints" / name)

"""A YAML file is parsed once in a process: Hydra reads thirty of ``conf/`` for each composition, and tests compose."""

import pickle
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

_parse = OmegaConf.load
_parsed: dict[str, bytes] = {}  # by the text: pickled, since whoever gets one may change it


def _load(file_: "str | Path | IO[Any]") -> Any:
    """In place of ``OmegaConf.load``."""
    if isinstance(file_, str | Path):
        with open(file_, encoding="utf-8") as file:
            return _load(file)
    text = file_.read()
    if text not in _parsed:
        file_.seek(0)
        _parsed[text] = pickle.dumps(_parse(file_))
    return pickle.loads(_parsed[text])


OmegaConf.load = staticmethod(_load)  # type: ignore[method-assign]

"""Reads pickles of numpy arrays, as JAX and Haiku programs write them, without running any code in them.

A pickle names classes and functions to call. Here every name is answered by a stand-in of this file, which holds what
it is given and does nothing else: no module is imported and nothing of another package is called.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.reading import open_regular

# Packages whose arrays, containers and optimizer states such files hold; a name of any other package is refused.
PACKAGES = ("numpy", "jax", "jaxlib", "haiku", "optax", "byol")
_NUMBERS = re.compile(r"[fiub][1248]")  # kinds of values that an array may have: objects are none of them


class Record:
    """An object of a class that is not known: what it was made of, and nothing else."""

    parts: tuple[object, ...]

    def __new__(cls, *parts: object) -> "Record":
        made = super().__new__(cls)
        made.parts = parts
        return made

    def __init__(self, *parts: object) -> None:
        """Takes what ``__new__`` has kept."""

    def __setstate__(self, state: object) -> None:
        """Keeps the state as one more part."""
        self.parts = (*self.parts, state)


class _Kind:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str, *options: object) -> None:
        if not _NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of {code}")
        self.code = code
        self.order: Literal["<", ">", "="] = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def array(self, data: bytes, shape: tuple[int, ...], order: Any) -> Tensor:
        kind = np.dtype(self.code)
        values = np.frombuffer(data, kind.newbyteorder(self.order))
        return torch.from_numpy(values.reshape(shape, order=order).astype(kind, order="C"))


class _Array:
    """Stands for ``numpy.ndarray``, which is made empty and then filled."""

    value: Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_column, data = state
        self.value = kind.array(data, shape, "F" if by_column else "C")


def _empty_array(*described: object) -> _Array:
    return _Array()


def _full_array(data: Any, kind: _Kind, shape: tuple[int, ...], order: str) -> Tensor:
    """Stands for what numpy uses since pickle's protocol 5."""
    return kind.array(bytes(data), shape, order)


def _encoded(text: str, encoding: str) -> bytes:
    """Stands for what protocol 2 writes for bytes."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_CORE = ("numpy.core", "numpy._core")  # below and since numpy 2
_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Kind,
    "numpy.ndarray": _Array,
    **{f"{core}.multiarray._reconstruct": _empty_array for core in _CORE},
    **{f"{core}.numeric._frombuffer": _full_array for core in _CORE},
    "_codecs.encode": _encoded,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,  # of protocol 2
    "collections.OrderedDict": dict,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Returns a stand-in; nothing is imported. Raises UnpicklingError for a name of any other package."""
        whole = f"{module}.{name}"
        stand_in = _STAND_INS.get(whole)
        if stand_in is not None:
            return lambda *parts: stand_in(*parts)  # a new one for each name: a pickle may set attributes of it
        if module.partition(".")[0] in PACKAGES:
            return type("Record", (Record,), {})  # likewise
        raise pickle.UnpicklingError(f"it asks for {whole}")


def read_arrays(path: Path) -> Any:
    """Reads a pickle of arrays: dictionaries, lists and plain values, with arrays as tensors.

    Objects of other classes become lists of what they were made of, or the one dictionary that they hold.

    Raises:
        Exception: of any kind: the file is damaged, or asks for a name that has no stand-in.
    """
    with open_regular(path) as file:
        return _plain(_Reader(file).load())


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Record):
        only = value.parts[0] if len(value.parts) == 1 else None
        return _plain(only if isinstance(only, dict | Record) else list(value.parts))
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value

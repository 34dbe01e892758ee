"""Reads files from others without running any code in them."""

import os
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from unlabeled.core.archive import damage_of
from unlabeled.core.reading import open_regular
from unlabeled.errors import UserError
from unlabeled.weights.haiku.arrays import PACKAGES, read_arrays
from unlabeled.weights.haiku.names import arrange

# Classes in official checkpoints, of settings and metrics that are not needed. Each is replaced by SkippedObject; the
# class itself is never imported or called, so that its code cannot run.
UNREAD = (
    "argparse.Namespace",  # args of MAE, DINO and DeiT
    "numpy.core.multiarray.scalar",  # best accuracies and losses, of numpy below 2
    "numpy._core.multiarray.scalar",  # the same since numpy 2
    "numpy.dtype",  # of those
    "numpy.core.multiarray._reconstruct",  # arrays
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # the same since Python 3.13
    "typing.Any",  # from here on hyper_parameters, as Lightning and solo-learn write them
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "builtins.bool",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # a key of callbacks before Lightning 1.5
)
# Other dictionary classes, which may hold tensors: each becomes a plain dict with the same items.
DICTIONARIES = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "vissl.config.attr_dict.AttrDict",
    "vissl.utils.hydra_config.AttrDict",
)


class SkippedObject:
    """Placeholder for a value of a class in ``UNREAD``."""

    def __new__(cls, *arguments: object) -> "SkippedObject":
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        """Ignores all arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignores the state."""


def _default_dictionary(*arguments: object) -> dict[Any, Any]:
    """Returns a plain dict in place of a ``collections.defaultdict``, without its default."""
    return {}


def _stand_ins() -> list[Any]:
    """Returns the objects that torch uses for each name instead of importing it."""
    unread = [(SkippedObject, name) for name in UNREAD]
    return [*unread, *((OrderedDict, name) for name in DICTIONARIES), (_default_dictionary, "collections.defaultdict")]


def read_tensors(path: Path) -> Any:
    """Reads a file of ``torch.save`` (either format), safetensors or a pickle of arrays to the CPU.

    Files are read with ``weights_only=True``: tensors, plain values and containers of them; values of ``UNREAD`` are
    skipped. Pickles of arrays, as JAX and Haiku write them, are read by :mod:`unlabeled.weights.haiku.arrays`.

    Raises:
        UserError: no such file, damaged, no checkpoint, or a pickle that would have to run code; the message says
        which.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint={path}: no such file")
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        mmap = zipfile.is_zipfile(path)  # files from before torch 1.6 are not zip files, some official ones among them
        damage = damage_of(path) if mmap else None
        if damage:
            raise UserError(f"checkpoint={path}: damaged ({damage}); copy it again, or give another file")
        if not mmap and _asks_for_arrays(path):
            return arrange(read_arrays(path))
        with torch.serialization.safe_globals(_stand_ins()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"checkpoint={path}: {_reason(path, error)}") from error


def _is_safetensors(path: Path) -> bool:
    """Checks whether the file has the header of safetensors: eight bytes with the length of the JSON that follows."""
    with open_regular(path) as file:
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
    return first == b"{" and length < path.stat().st_size


def _reason(path: Path, error: Exception) -> str:
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    asked = re.findall(r"(?:GLOBAL|^it asks for) ([\w.]+)", text) or (
        [] if _asks_for_arrays(path) else _globals_of(path)
    )
    if not asked:
        short = text.strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        return f"cannot be read as tensors and plain values ({short})"
    return (
        f"an unsafe pickle, not read: it asks for {asked[0]}, which could run any code. If you trust who made it, load "
        "it where it was made and save its tensors alone: torch.save(model.state_dict(), FILE), or as safetensors; "
        "arrays of JAX by safetensors.numpy.save_file(ARRAYS, FILE), under torchvision's or timm's names"
    )


def _asks_for_arrays(path: Path) -> bool:
    return any(name.partition(".")[0] in PACKAGES for name in _globals_of(path))


def _globals_of(path: Path) -> list[str]:
    """Lists the globals that a bare pickle asks for, by reading its instructions; none of them is executed.

    It is empty for files of ``torch.save``: zip files, or in the old format files that begin with a pickled number.
    """
    words, found = [""], []
    with open_regular(path) as file, suppress(ValueError, OverflowError, MemoryError):  # damaged
        for instruction, value, _ in pickletools.genops(file):
            if instruction.name == "GLOBAL":
                found.append(str(value).replace(" ", "."))
            elif instruction.name == "STACK_GLOBAL":
                found.append(".".join(words[-2:]))
            elif "UNICODE" in instruction.name:
                words.append(str(value))
    return found

"""Treats a configuration from a file as data: reading it imports, resolves and opens nothing.

A checkpoint, a fault record, a report or a ``config.yaml`` may come from anybody. Before anything is built from one, it
must pass :func:`check_part`: an allow-list of targets for each part, at any depth.
"""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from unlabeled.core.escaping import escaped
from unlabeled.core.moved_targets import with_current_targets
from unlabeled.core.parsing import tree
from unlabeled.errors import UserError

LONGEST = 200  # characters of a value that a message shows


class Kind(NamedTuple):
    """A kind of object that a target may name."""

    room: str  # module; for our own, also its submodules
    base: str  # class that the target must be, inherit from, or (a function) return


# Kinds that may be built from a file, by part: the first kind at its top, any of them below; nothing else.
KINDS: dict[str, tuple[Kind, ...]] = {
    "data": (Kind("unlabeled.data", "unlabeled.data.source.Splits"),),
    "views": (
        Kind("unlabeled.views", "unlabeled.views.pipeline.Views"),
        Kind("unlabeled.views", "unlabeled.views.pipeline.ViewGroup"),
        Kind("unlabeled.views", "unlabeled.views.operations.Operation"),
        Kind("torchvision.transforms.v2", "torch.nn.Module"),
        Kind("kornia.augmentation", "torch.nn.Module"),
    ),
    "backbone": (Kind("unlabeled.backbones", "unlabeled.objective.Backbone"),),
    "objective": (
        Kind("unlabeled.objectives", "unlabeled.objective.Objective"),
        Kind("unlabeled.objectives", "torch.nn.Module"),
        Kind("unlabeled.data.support", "unlabeled.data.support.ClassBalanced"),
        Kind("unlabeled.data.companions", "unlabeled.data.companions.Companions"),
    ),
    "optimizer": (
        Kind("unlabeled.optimizers", "unlabeled.optimizers.optimizer_config.OptimizerConfig"),
        Kind("unlabeled.optimizers", "torch.optim.Optimizer"),
        Kind("torch.optim", "torch.optim.Optimizer"),
    ),
}
PARTIAL = ("optimizer",)  # parts in which _partial_ is allowed
CONVERSIONS = ("none", "partial", "object", "all")
# Transforms that load a network from any place, or call any function that they are given
REFUSED = {"kornia.augmentation.RandomDissolving", "torchvision.transforms.v2.Lambda"}
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
RUN_FOLDERS = ("checkpoints", "faults")  # subfolders of a run with tensor files


def as_data(value: Any, where: str) -> Any:
    """Returns a copy of plain values, with the targets of earlier versions replaced by current ones.

    Args:
        value: the content of a file.
        where: the file, for messages.

    Raises:
        UserError: it contains other values than dicts with text as keys, lists, text, numbers, booleans and None, is
            deeper than 40 levels (it may contain itself) or has more than 100,000 values.
    """
    try:
        return with_current_targets(_plain(tree(value)))
    except ValueError as error:
        raise UserError(f"{where}: its configuration is no configuration of a run: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if not all(type(key) is str for key in value):
            raise ValueError("a key is no text")
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ValueError(f"it holds a {type(value).__name__}, which is no plain value")


def check_part(part: str, values: Any, where: str, named: Callable[[str], bool] = lambda target: False) -> None:
    """Raises UserError unless one part of a file's configuration may be built.

    Every target in it, at any depth, must be one of the ``KINDS`` of that part, or be named by the user's own
    configuration. Interpolations are refused: a run writes resolved values.

    Args:
        part: ``data``, ``views``, ``backbone``, ``objective`` or ``optimizer``.
        values: plain, see :func:`as_data`.
        where: the file, for messages.
        named: returns whether the user's own yamls name a target for this part; called if the target is not ours.
    """
    if part not in KINDS:
        raise UserError(f"{where}: {part} is never built from a file")
    if not isinstance(values, dict) or "_target_" not in values:
        raise UserError(f"{where}: its {part} names no _target_; give {part}=…")
    for path, node in _nodes(values, part):
        if isinstance(node, dict):
            if "_target_" in node:
                kinds = KINDS[part][:1] if path == part else KINDS[part]
                _check_target(part, path, node["_target_"], kinds, where, named)
            _check_keys(part, path, node, where)
        elif isinstance(node, str) and ("${" in node or node == "???"):
            raise UserError(
                f"{where}: {path}={short(node)}: is no value, and nothing is looked up for a file; give {part}=…"
            )


def _nodes(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields every value with its dotted name, keys included."""
    yield path, value
    if isinstance(value, dict):
        for key, each in value.items():
            yield f"{path} (key)", key
            yield from _nodes(each, f"{path}.{key}")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _nodes(each, f"{path}[{place}]")


def _check_keys(part: str, path: str, node: dict[str, Any], where: str) -> None:
    """Refuses keys that begin with an underscore: they are instructions to Hydra."""
    allowed: dict[str, Collection[Any]] = {"_convert_": CONVERSIONS}
    if part in PARTIAL:
        allowed["_partial_"] = (True, False)
    for key, value in node.items():
        known = type(value) in (str, bool) and value in allowed.get(key, ())
        if key.startswith("_") and key != "_target_" and not known:
            raise UserError(f"{where}: {path}.{short(key)}={short(value)}: is not taken from a file; give {part}=…")


def _check_target(
    part: str, path: str, target: Any, kinds: Sequence[Kind], where: str, named: Callable[[str], bool]
) -> None:
    allowed = isinstance(target, str) and DOTTED.fullmatch(target) and target not in REFUSED
    if allowed and (any(_is(target, kind) for kind in kinds) or named(target)):
        return
    raise UserError(
        f"{where}: {path}._target_={short(target)}: is no {part} of this package, and code that a file names is not "
        f"run; if it is your own, name it in a yaml of yours (--config-dir=FOLDER with {part}/NAME.yaml) or give "
        f"{part}=…"
    )


def _is(target: str, kind: Kind) -> bool:
    """Returns whether a target directly names a public object of that kind; imports only the kind's own package."""
    module, _, name = target.rpartition(".")
    ours = kind.room.startswith("unlabeled.")
    inside = module == kind.room or (ours and module.startswith(f"{kind.room}."))
    if not inside:
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    if ours and not str(getattr(found, "__module__", "")).startswith("unlabeled."):
        return False  # imported into our module from elsewhere
    base = _base(kind.base)
    if inspect.isfunction(found):
        return _returns(found) is base
    return inspect.isclass(found) and not getattr(found, "_is_protocol", False) and issubclass(found, base)


def _returns(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return")
    except NameError:  # a type that is imported only for type checkers
        return None


def _base(dotted: str) -> type:
    module, _, name = dotted.rpartition(".")
    base: type = getattr(importlib.import_module(module), name)
    return base


def short(value: Any) -> str:
    """Returns a value of a file for a message: one printable line of at most 200 characters."""
    text = value if isinstance(value, str) else repr(value)
    text = escaped(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def is_own_run(file: Path) -> bool:
    """Returns whether a file is in checkpoints/ or faults/ of a run folder with config.yaml, both owned by this user.

    Files that it names may be opened without the user naming them again. A file that was unpacked or downloaded
    elsewhere may come from anybody.
    """
    file = file.resolve()
    config = file.parent.parent / "config.yaml"
    try:
        owners = {path.stat().st_uid for path in (file, config)}
    except OSError:
        return False
    return file.parent.name in RUN_FOLDERS and os.path.isfile(config) and (os.name == "nt" or owners == {os.getuid()})


def check_opened(part: str, values: Mapping[str, Any], file: Path, keys: Collection[str] | None = None) -> None:
    """Raises UserError if building a part would open files or addresses that only ``file`` names.

    Args:
        part: of its configuration.
        values: of that part.
        file: the checkpoint or record.
        keys: names of the values that are file paths; None: any text may be one.
    """
    texts = {path: text for path, text in _nodes(dict(values), part) if _names_file(path, text, keys)}
    if not texts:
        return
    path, text = next(iter(texts.items()))
    addressed = {path: text for path, text in texts.items() if "://" in text}
    if addressed:
        path, text = next(iter(addressed.items()))
        raise UserError(f"{file} names {path}={short(text)}, and no address of a file is followed: give {part}=…")
    if not is_own_run(file):
        raise UserError(
            f"{file} names {path}={short(text)}, and lies in no run folder of yours (checkpoints/ beside config.yaml), "
            f"so nothing that it names is opened: give {part}=…"
        )


def _names_file(path: str, value: Any, keys: Collection[str] | None) -> bool:
    last = re.split(r"[.\[]", path)[-1]
    if not isinstance(value, str) or last.startswith("_") or path.endswith(" (key)"):
        return False
    return keys is None or any(key in re.split(r"[.\[\]]+", path) for key in keys)

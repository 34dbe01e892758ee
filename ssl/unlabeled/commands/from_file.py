"""Parts of a file's configuration, for commands that build them: checked first, whoever wrote the file.

Allowed are this package's own parts, and what the yamls name that the command itself was given: those of ``conf/`` and
of ``--config-dir``. So an objective of the user's own can be evaluated, with the folder that names it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.arguments.asked import typed_overrides, yaml_folders
from unlabeled.commands.checks.decoder import with_earlier_decoder
from unlabeled.commands.config import check_node, conf_folder
from unlabeled.core.file_config import check_opened, check_part
from unlabeled.core.reading import read_utf8
from unlabeled.core.run_config import read_yaml
from unlabeled.distributed.launch import local_rank
from unlabeled.errors import UserError

DECODED = ("image_size", "square", "channels", "bits")  # how images are decoded, which features depend on
SPLIT = ("train", "test", "holdout", "labels", "path_column", "label_column")  # which images, and their labels


def part_of(config: Mapping[str, Any] | None, part: str, file: Path) -> DictConfig | None:
    """One part of the configuration that a file holds, fit to be built; None where it has none.

    Raises:
        UserError: it holds a target or a value that may not be taken from a file, or that nothing takes.
    """
    values = (config or {}).get(part)
    if values is None:
        return None
    check_part(part, values, str(file), lambda target: is_named(part, target))
    try:
        check_node(values, part)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    found: DictConfig = OmegaConf.create(with_earlier_decoder(values) if part == "data" else values)
    return found


def data_of(
    given: DictConfig | None, config: Mapping[str, Any] | None, file: Path, needed: bool = True
) -> DictConfig | None:
    """The data of a command: what it was given, else what a file names, if that may be opened.

    Args:
        given: on the command line: whole, or single values that replace those of the file, such as ``path``.
        config: of the file.
        file: where it stands.
        needed: whether the command cannot do without; if not, data that may not be opened are None.
    """
    if given and "_target_" in given:
        return _read_as_before(given, config, file)
    values = part_of(config, "data", file)
    if values is None:
        return None
    try:
        named = {key: value for key, value in values.items() if key not in (given or {})}
        if not given or "path" not in given:
            check_opened("data", {str(key): value for key, value in named.items()}, file)
    except UserError:
        if needed:
            raise
        return None
    both: DictConfig = OmegaConf.create({**values, **(given or {})})
    check_node(OmegaConf.to_container(both), "data")  # the file's source may not have the keys that were given
    return both


def _read_as_before(given: DictConfig, config: Mapping[str, Any] | None, file: Path) -> DictConfig:
    """Data that ``data=PATH`` names, with what is left open as the file's run had it: the size of decoded images, say.

    Features, and so every number, depend on that. Of the run's own images the test split is the run's too.
    """
    own = (config or {}).get("data")
    if not isinstance(own, Mapping):
        return given
    if own.get("_target_") != given["_target_"]:
        _tell_of_other_sizes(given, own)
        return given
    same = "path" in given and _place(given.path) == _place(own.get("path"))
    try:
        values = part_of(config, "data", file)
        if same:
            check_opened("data", {key: own[key] for key in ("train", "test") if key in own}, file)
    except UserError:  # it may not be taken from this file
        return given
    left_open = _left_open(given)
    keys = [key for key in (*DECODED, *(SPLIT if same else ())) if key in left_open]
    taken = {key: values[key] for key in keys if key in values} if values is not None else {}
    if same and taken.get("holdout") is not None and local_rank() == 0:
        share = taken["holdout"]
        print(f"data.path={given.path}: the images of the run, of which data.holdout={share} are its test images")
    return OmegaConf.create({**given, **taken})


def _tell_of_other_sizes(given: DictConfig, own: Mapping[str, Any]) -> None:
    """Says by which keys images of another kind of source are decoded as large as the run's, where they are smaller."""
    size, run_size = given.get("image_size"), own.get("image_size")
    if not isinstance(size, int) or not isinstance(run_size, int) or size >= run_size:
        return
    differ = {key: own[key] for key in DECODED if key in own and key in given and own[key] != given[key]}
    open_yet = _left_open(given) if differ and local_rank() == 0 else set()
    keys = " ".join(f"data.{key}={json.dumps(value)}" for key, value in differ.items() if key in open_yet)
    if keys:
        print(f"data.path={given.get('path')}: the run's images were decoded with {keys}: give the same, if they fit")


def _left_open(given: DictConfig) -> set[str]:
    """The keys that have the value of their yaml and that nobody typed."""
    target = str(given["_target_"])
    asked = {each.lstrip("+~").split("=")[0] for each in typed_overrides()}
    yamls = [_content(path, target) for path in (conf_folder() / "data").glob("*.yaml")]
    default = next((each for each in yamls if isinstance(each, dict) and each.get("_target_") == target), {})
    return {str(key) for key, value in given.items() if value == default.get(key) and f"data.{key!s}" not in asked}


def _place(path: Any) -> Any:
    return os.path.realpath(os.path.expanduser(path)) if isinstance(path, str) else path


def seed_of(config: Mapping[str, Any] | None, otherwise: int, file: Path) -> int:
    """The seed that a file's run had. Raises UserError where it is none."""
    seed = (config or {}).get("seed", otherwise)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise UserError(f"{file}: its seed is no whole number from 0 on")
    return seed


def progressive_sizes_of(config: Mapping[str, Any], file: Path) -> list[tuple[float, int]] | None:
    """The sizes of views by the share of the run, as that of a file had them. Raises UserError where they are none."""
    pairs = config.get("progressive_resizing")
    if pairs is None:
        return None
    right = isinstance(pairs, list) and all(
        isinstance(each, list) and len(each) == 2 and type(each[0]) in (int, float) and type(each[1]) is int
        for each in pairs
    )
    if not right or not all(0 <= share < 1 and 1 <= pixels <= 65536 for share, pixels in pairs):
        raise UserError(f"{file}: its progressive_resizing is no list of pairs of a share and pixels")
    return [(float(share), pixels) for share, pixels in pairs]


def is_named(part: str, target: str) -> bool:
    """Whether the yamls of this command's configuration name a target for a part: its own, or their experiments."""
    for folder in yaml_folders():
        parts = [_content(path, target) for path in sorted((folder / part).rglob("*.yaml"))]
        experiments = [_content(path, target) for path in sorted((folder / "experiment").rglob("*.yaml"))]
        parts += [each.get(part) for each in experiments if isinstance(each, dict)]
        if any(target in _targets(each) for each in parts):
            return True
    return False


def _content(path: Path, target: str) -> Any:
    """What is in a yaml; None where the target is not, which is quick to see."""
    return read_yaml(path) if target in read_utf8(path) else None


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["_target_"]] if isinstance(node.get("_target_"), str) else []
        node = list(node.values())
    for each in node if isinstance(node, list) else []:
        yield from _targets(each)

"""A run's folder and what it was started with: a run goes on with the same values, or says what has changed."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.checks.decoder import settle_decoder
from unlabeled.commands.checks.places import names_library
from unlabeled.core.escaping import escaped
from unlabeled.core.file_config import as_data
from unlabeled.core.run_config import EARLIER_VALUES, FREE_KEYS, MOVABLE_KEYS, NOT_FREE, differences, read_yaml
from unlabeled.errors import UserError
from unlabeled.training.run_folder import check_run_folder

_ABSENT = object()


def open_run(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, after making sure that ``run_dir`` does not hold another run.

    Raises:
        UserError: there is a checkpoint of a run with other values; the message names the keys.
    """
    settle_decoder(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_place(resolved)
    resolved = with_absolute_paths(resolved)
    _check_weights(resolved)
    run_dir = Path(resolved["run_dir"])
    check_run_folder(run_dir)
    begun = any((run_dir / "checkpoints").glob("*.ckpt")) and (run_dir / "config.yaml").exists()
    if begun and resolved.get("resume") != "override":
        check_same(_values_of(run_dir / "config.yaml"), resolved)
    return dict(resolved)


def _check_weights(resolved: dict[str, Any]) -> None:
    """Nothing is given that only means something beside ``weights``."""
    if resolved.get("weights") is not None:
        return
    for key, otherwise in (("weights_of", "backbone"), ("weights_sha256", None)):
        if resolved.get(key, otherwise) != otherwise:
            raise UserError(f"{key}={resolved[key]}: weights=null: give weights=… too, or leave {key} out")


def check_place(resolved: dict[str, Any]) -> None:
    """A name is that of a folder in outputs/, and no way out of it; a run has a folder."""
    name, run_dir = str(resolved["name"]), resolved["run_dir"]
    if not name.strip() or escaped(name) != name or {"", ".", ".."} & {*name.split("/")}:
        raise UserError(f"name={name}: must be the name of a folder within outputs/; run_dir=… takes any")
    if not run_dir.strip() or "\0" in run_dir:
        raise UserError(f"run_dir={run_dir}: must be the name of a folder, which may be new")
    if "::" in run_dir:  # to fsspec, by which Lightning writes a state, it chains two file systems
        raise UserError(f"run_dir={run_dir}: no state could be written to a folder with :: in its name; give another")


def _values_of(path: Path) -> dict[str, Any]:
    try:
        before = read_yaml(path)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split()).removeprefix(f"{path}: ")
        raise UserError(f"{path} is damaged ({why}); remove it: the checkpoints hold the same values") from error
    if not isinstance(before, dict) or not before:
        raise UserError(f"{path} is damaged, it holds no keys; remove it: the checkpoints hold the same values")
    return dict(as_data(before, str(path)))


def check_same(before: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Raise UserError, naming the keys, where a run would go on with other values than those it was started with."""
    # Images are compared as files, see unlabeled.training.same_data; a name is picked from the data's folder, which may
    # have moved, and another name has another folder unless run_dir says which.
    free = {*FREE_KEYS, *MOVABLE_KEYS, "name"}
    differing = [key for key in differences(before, resolved) if key in NOT_FREE or not {key, key.split(".")[0]} & free]
    differing = [key for key in differing if not _is_new_key(key, before, resolved)]
    if differing:
        raise UserError(
            f"{resolved['run_dir']} holds a run with another {', '.join(differing)}; give another name=…, or "
            "resume=override to go on with the new values, or remove that folder"
        )


def _is_new_key(key: str, before: dict[str, Any], resolved: dict[str, Any]) -> bool:
    """Returns whether a run of an earlier version lacks a key, and it has the value that was in effect then."""
    then, now = (_value_at(values, key) for values in (before, resolved))
    return key in EARLIER_VALUES and then is _ABSENT and now == EARLIER_VALUES[key]


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def with_absolute_paths(resolved: Any) -> dict[str, Any]:
    """Plain values in which :data:`MOVABLE_KEYS` hold from whatever folder the run is looked at; URLs stay."""
    made = {key: dict(value) if isinstance(value, dict) else value for key, value in dict(resolved).items()}
    for key in MOVABLE_KEYS:
        group, _, name = key.rpartition(".")
        node = made.get(group) if group else made
        if isinstance(node, dict) and node.get(name):
            node[name] = _absolute(node[name])
    for node, key in ((made, "weights"), (made.get("objective"), "teacher")):
        named = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(named, str) and not names_library(named):
            node[key] = _absolute(named)
    return made


def _absolute(path: Any) -> Any:
    if isinstance(path, list):
        return [_absolute(each) for each in path]
    return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) and "://" not in path else path

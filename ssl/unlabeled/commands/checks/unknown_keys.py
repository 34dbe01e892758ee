"""What Hydra found wrong in a command, as one line with the key that is meant. No torch in here."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from unlabeled.commands.aliases import meant, nearest


def explain(error: Exception, config_dir: Path, config_name: str, arguments: Sequence[str], own: Sequence[Path]) -> str:
    """Returns one line for an error that Hydra found in what was typed.

    Args:
        error: of Hydra or OmegaConf.
        config_dir: where the primary yaml ``config_name`` is.
        arguments: ``key=value`` each, as given.
        own: the folders of ``--config-dir``.
    """
    if isinstance(error, MissingMandatoryValue):
        key = str(error).rpartition("full_key: ")[2].split()[0]
        return f"{key}: has no default; give {key}=…"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = error.options or [path.stem for path in (config_dir / group).glob("*.yaml")]  # none for a list
        hint = nearest(name, options)
        if group == "data" and (close := _folder_like(name, options)):
            return f"data={name}: no folder of that name is here; did you mean data=./{close}?"
        if group == "data" and not hint.startswith("did you mean"):
            return f"data={name}: no folder of that name is here, and no choice {hint}"
        return f"{group}={name}: unknown; {hint}"
    return _unknown_key(config_dir, config_name, arguments, own) or str(error)


def _folder_like(name: str, choices: Iterable[str]) -> str | None:
    """A folder or list in this folder whose name is more like a mistyped one than that of any choice."""
    try:
        here = [entry.name for entry in os.scandir() if entry.is_dir() or entry.name.endswith((".csv", ".tsv", ".txt"))]
    except OSError:
        return None
    close = difflib.get_close_matches(name, [*here, *choices], n=1, cutoff=0.6)
    return close[0] if close and close[0] in here else None


def _unknown_key(config_dir: Path, config_name: str, arguments: Sequence[str], own: Sequence[Path]) -> str | None:
    """The first override whose key is not in the configuration that the group choices give."""
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    GlobalHydra.instance().clear()
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        folders = [config_dir, *own]
        choices = [each for each in parsed if any((folder / each.key_or_group).is_dir() for folder in folders)]
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            searched = [f"hydra.searchpath=['file://{folder}']" for folder in own[:1]]
            known = compose(config_name, [*(str(each.input_line) for each in choices), *searched])
    except HydraException:
        return None  # another mistake, which the first error names
    for override in parsed:
        if override in choices or override.is_add() or override.key_or_group.startswith("hydra"):
            continue
        *path, key = override.key_or_group.split(".")
        node = OmegaConf.select(known, ".".join(path)) if path else known
        names = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if key not in names:
            whole = override.key_or_group
            top = {str(name) for name in known} | set(groups_of(OmegaConf.load(config_dir / f"{config_name}.yaml")))
            if (instead := meant(whole, top) or _one_level_below(node, path, key)) is not None:
                return f"{whole}: no such key; did you mean {instead}?"
            if path and not names:
                group = ".".join(path)
                if path[0] not in top and (close := difflib.get_close_matches(path[0], top, n=1, cutoff=0.8)):
                    return f"{whole}: no such key; did you mean {'.'.join([close[0], *path[1:], key])}?"
                return f"{whole}: no such key: nothing is chosen for {group}; give {group}=… too, or leave it out"
            return f"{whole}: no such key; {nearest(key, names if path else top, '.'.join(path))}"
    return None


def _one_level_below(node: Any, path: list[str], key: str) -> str | None:
    """The key of this name in a part of what was named: ``optimizer.optimizer.momentum`` for ``optimizer.momentum``.

    At the top it is named only where one group alone has it: ``detection.steps`` for ``steps``.
    """
    parts = node.items_ex(resolve=False) if isinstance(node, DictConfig) else ()
    below = [".".join([*path, str(n), key]) for n, part in parts if isinstance(part, DictConfig) and key in part]
    return below[0] if below and (path or len(below) == 1) else None


def groups_of(primary: Any) -> list[str]:
    """Returns the groups of a primary yaml, those too of which nothing is chosen."""
    entries = [each for each in primary.get("defaults", []) if isinstance(each, Mapping | DictConfig)]
    return [str(key) for entry in entries for key in entry if "override" not in str(key)]

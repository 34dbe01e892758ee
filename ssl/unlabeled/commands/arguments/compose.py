"""The configuration of a command from Python: keywords in place of ``key=value``, in any thread."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict

from unlabeled.commands.arguments.asked import remember
from unlabeled.commands.command_line import Reader
from unlabeled.commands.config import (
    check_keys,
    conf_folder,
    import_from_beside,
    own_folders,
    user_errors,
    with_joined_options,
    with_moved_data,
)
from unlabeled.errors import UserError

_ONE_AT_A_TIME = threading.RLock()  # what Hydra composes with is a global of the process


def overrides_of(keys: Mapping[str, Any]) -> list[str]:
    """``optimizer={"lr": 0.1}`` as ``optimizer.lr=0.1``: what stands on the command line for the keywords of a call.

    Raises:
        UserError: a value is no text, number, list or dict of these.
    """
    found: list[str] = []
    for key, value in keys.items():
        if isinstance(value, Mapping):
            found += overrides_of({f"{key}.{below}": each for below, each in value.items()})
        else:
            found.append(f"{key}={_as_text(value, key)}")
    return found


def _as_text(value: Any, key: str) -> str:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of NumPy, as np.logspace has them
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        text = os.path.expanduser(text) if text.startswith("~") else text
        plain = bool(text) and all(letter.isascii() and (letter.isalnum() or letter in "_-./") for letter in text)
        return str(text) if plain and not _means_something(text) else QuotedString(text, Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(_as_text(each, key) for each in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_as_text(each, key)}" for name, each in value.items()) + "}"
    raise UserError(f"{key}={value!r}: must be text, a number, true or false, None, or a list or dict of these")


def _means_something(text: str) -> bool:
    """Whether a value without quotes would be no text: 12, null, true, 1e-3."""
    return text.lower() in ("null", "true", "false", "nan", "inf", "-inf") or text.lstrip("+-.")[:1].isdigit()


def composed(config_name: str, overrides: Sequence[str], asked: bool = True) -> DictConfig:
    """A command's configuration, resolved and checked as on the command line.

    Args:
        config_name: of the primary yaml in ``conf/``.
        overrides: ``key=value`` each; an own folder of configurations by ``--config-dir=FOLDER``, as there.
        asked: whether these are the keys of the command itself, see :mod:`unlabeled.commands.arguments.asked`.

    Raises:
        UserError: the same line as there.
    """
    conf, overrides = conf_folder(), with_joined_options(overrides)
    values = [each for each in overrides if not each.startswith("--config-dir=")]
    own = own_folders(overrides)
    import_from_beside(own)
    if own:
        values.append(f"hydra.searchpath=[{','.join(_as_text(f'file://{each}', 'config-dir') for each in own)}]")
    with user_errors(conf, config_name, values):
        values = Reader(conf, config_name, with_moved_data(conf / f"{config_name}.yaml", values)).arguments()
    with user_errors(conf, config_name, values), _ONE_AT_A_TIME, _hydra_as_found():
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = compose(config_name, values, return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # ${hydra:runtime.choices.data} asks it
        with open_dict(config):
            del config["hydra"]
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        result = OmegaConf.create(plain)
        assert isinstance(result, DictConfig)
        check_keys(result, conf / f"{config_name}.yaml")
        if asked:
            remember(overrides, own)
        return result


@contextmanager
def _hydra_as_found() -> Iterator[None]:
    """A caller may be inside of a Hydra application of its own."""
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, config

"""What a command was asked for: the keys that somebody gave it, and the folders of yamls that it looks in.

On the command line Hydra knows. A command that is called from Python is composed first and works afterwards, when Hydra
has been put back as it was found: it is remembered here until the call returns.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig

from unlabeled.commands.config import conf_folder


class _Asked(NamedTuple):
    overrides: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()


_asked: ContextVar[_Asked] = ContextVar("asked", default=_Asked())  # noqa: B039, a tuple


def remember(overrides: Iterable[str], folders: Iterable[Path]) -> None:
    """Keep what a command of this thread is asked for, in place of what the last one was."""
    _asked.set(_Asked(tuple(overrides), tuple(folders)))


@contextmanager
def forgotten_afterwards() -> Iterator[None]:
    """Forget at the end of a call what it was asked for."""
    try:
        yield
    finally:
        _asked.set(_Asked())


def typed_overrides() -> Sequence[str]:
    """``key=value`` each, without what yamls say."""
    return HydraConfig.get().overrides.task if HydraConfig.initialized() else _asked.get().overrides


def yaml_folders() -> list[Path]:
    """Where the command looks for yamls: its own folder, and those of the user."""
    own = list(_asked.get().folders)
    if not HydraConfig.initialized():
        return [conf_folder(), *own]
    return [Path(each.path) for each in HydraConfig.get().runtime.config_sources if each.schema == "file"] + own

"""What was typed: one clear line for each mistake in it, and the record of what was run. No torch in here."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import unlabeled
from unlabeled.commands.aliases import nearest
from unlabeled.commands.checks.former_run import check_place
from unlabeled.commands.checks.machine import check_machine
from unlabeled.commands.checks.places import check_places
from unlabeled.commands.checks.signatures import parameters_of
from unlabeled.commands.checks.unknown_keys import explain, groups_of
from unlabeled.commands.checks.values import check_value
from unlabeled.commands.command_line import read_command_line
from unlabeled.commands.importing import heavy_imports
from unlabeled.commands.keys import TYPES
from unlabeled.core.escaping import escaped
from unlabeled.core.run_config import MOVABLE_KEYS
from unlabeled.core.writing import reason
from unlabeled.errors import UserError

CHOICES = {
    "data",
    "experiment",
    "objective",
    "backbone",
    "views",
    "optimizer",
    "replay",
}  # a training names one of them
EXTRAS = ("kornia",)  # packages that a command may need and a training does not


@contextmanager
def one_line_errors(config_dir: Path, config_name: str, arguments: Sequence[str] | None = None) -> Iterator[None]:
    """Turn a mistake in the command into one line on stderr and exit code 2; other errors keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths may hold bytes that are no UTF-8, and a terminal may know less
            stream.reconfigure(errors="backslashreplace")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here instead of printing them and exiting with 1
    try:
        with user_errors(config_dir, config_name, arguments):
            yield
    except UserError as error:
        print(f"error: {escaped(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def user_errors(config_dir: Path, config_name: str, arguments: Sequence[str] | None = None) -> Iterator[None]:
    """Turn whatever a mistake in the command raises into a UserError of one line.

    Args:
        config_dir: where the primary yaml ``config_name`` is.
        arguments: ``key=value`` each, as given; None: what was typed.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _check_typed_place(given)
        yield
    except UserError as error:
        raise UserError(_one_line(str(error))) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(_one_line(str(error.__cause__))) from error
        if not isinstance(error.__cause__, OSError) or not _of_the_disk(error.__cause__):
            raise
        raise UserError(_one_line(_of_the_disk(error.__cause__))) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(explain(error, config_dir, config_name, given, own_folders(given)))) from error
    except OSError as error:  # of a library that reads or writes by itself, as Hydra makes folders
        if not _of_the_disk(error):
            raise
        raise UserError(_one_line(_of_the_disk(error))) from error
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        nulls = [each.split("=")[0] for each in given if each.endswith("=null")]
        group = next((each for each in nulls if (config_dir / each).is_dir()), "group")
        none = f", or give {group}=none" if (config_dir / group / "none.yaml").is_file() else ""
        left = f" (~{group}{none})" if group != "group" else ""
        raise UserError(f"a group cannot be null on the command line: leave it out with ~group{left}") from error


def _one_line(message: str) -> str:
    return " ".join(message.split())


def with_moved_data(primary: Path, arguments: list[str]) -> list[str]:
    """Lets ``data.path=…``, without ``data``, name where other images are, if the group is null by default.

    Other keys of the run's data may stand beside it, as ``data.holdout=null``.

    Hydra takes such a key for a mistake: there is no ``data`` yet that it could be a key of.
    """
    moved = tuple(f"{key}=" for key in MOVABLE_KEYS if key.startswith("data."))
    if not any(each.startswith(moved) for each in arguments) or any(each.startswith("data=") for each in arguments):
        return arguments
    defaults = OmegaConf.to_container(OmegaConf.load(primary)).get("defaults", [])  # type: ignore[union-attr]
    if {"data": None} not in defaults:
        return arguments
    return [f"+{each}" if each.startswith("data.") else each for each in arguments]


def _of_the_disk(error: OSError) -> str:
    """A line for an error that has a path, or that says that a disk is full; empty for any other."""
    if error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {reason(error)}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"{reason(error)}: make room and give the same command again"
    return ""


def launch(config_name: str, job: Callable[[DictConfig], Any], arguments: Sequence[str] | None = None) -> None:
    """Compose a configuration and do the job with it: once, or with ``--multirun`` once for each combination.

    Args:
        config_name: of the primary yaml in ``conf/``.
        job: gets the composed configuration; what it returns is what a sweeper compares.
        arguments: of the command, for Hydra; None: all that was typed.
    """
    conf, typed = conf_folder(), sys.argv

    def whole(config: DictConfig) -> Any:
        # Lightning starts further processes by the command as it was typed, its name within ``unlabeled`` and all
        sys.argv = typed
        with one_line_errors(conf, config_name):
            return job(config)

    import_from_beside(own_folders(sys.argv[1:] if arguments is None else arguments))
    whole.__module__ = config_name  # what Hydra calls the job, on a cluster too
    try:
        with one_line_errors(conf, config_name, arguments):  # mistakes that Hydra finds before it calls the job
            given = typed[1:] if arguments is None else list(arguments)
            sys.argv = [typed[0], *with_moved_data(conf / f"{config_name}.yaml", given)]
            read_command_line(conf, config_name)
            hydra_main(version_base="1.3", config_path=str(conf), config_name=config_name)(whole)()
    finally:
        sys.argv = typed


def run_module(
    config_name: str,
    command: str | Callable[[Any, dict[str, Any]], object],
    arguments: Sequence[str] | None = None,
) -> None:
    """What the scripts do, for a command that takes plain values: ``unlabeled NAME key=value``.

    Args:
        config_name: of the primary yaml in ``conf/``.
        command: gets the composed configuration, and the same as plain values. A ``module:function`` is imported after
            the keys are checked, so that a mistake in them is answered before torch is imported.
        arguments: as :func:`launch`.
    """

    def checked(config: DictConfig) -> None:
        check_command(config, conf_folder() / f"{config_name}.yaml")
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        if isinstance(command, str):
            with heavy_imports():
                called: Callable[[Any, dict[str, Any]], object] = _resolved(command)
            called(config, resolved)
        else:
            command(config, resolved)

    launch(config_name, checked, arguments)


def compose_config(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """A configuration besides that of the command, checked like it.

    Args:
        config_name: of the primary yaml in ``conf/``.
        overrides: ``key=value`` each.

    Raises:
        UserError: one of them is wrong.
    """
    conf = conf_folder()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = compose(config_name, list(overrides))
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from error
    check_keys(config, conf / f"{config_name}.yaml")
    return config


def _resolved(name: str) -> Any:
    try:
        return resolve_name(name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise UserError(f"{package} is not installed: pip install 'unlabeled[{package}]'") from error


def with_joined_options(arguments: Sequence[str]) -> list[str]:
    """The same arguments with ``--config-dir FOLDER`` as one word, ``--config-dir=FOLDER``."""
    found, rest = list[str](), iter(arguments)
    for each in rest:
        folder = next(rest, None) if each in ("--config-dir", "-cd") else None
        found.append(each if folder is None else f"--config-dir={folder}")
    return found


def own_folders(arguments: Sequence[str]) -> list[Path]:
    """What ``--config-dir FOLDER`` or ``--config-dir=FOLDER`` names."""
    named = [each for each in with_joined_options(arguments) if each.startswith("--config-dir=")]
    return [Path(each.partition("=")[2]).expanduser().absolute() for each in named]


def import_from_beside(folders: Iterable[Path]) -> None:
    """Let an own ``conf/objective/mine.yaml`` name ``mine.Mine`` of ``mine.py`` beside ``conf/``, from any folder."""
    sys.path += [beside for folder in folders if (beside := str(folder.parent)) not in sys.path]


def conf_folder() -> Path:
    """``conf/``: inside the installed package, or at the top of the checkout that it is part of."""
    assert unlabeled.__file__ is not None
    package = Path(unlabeled.__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"


def check_command(config: DictConfig, primary: Path) -> None:
    """Raise UserError for a wrong key or value, for what this machine does not have, or for a place that is not there.

    All without torch, so that each mistake is answered at once.
    """
    check_keys(config, primary)
    values: Any = OmegaConf.to_container(config, resolve=True)
    check_machine(values)
    check_places(primary.stem, values)


def check_keys(config: DictConfig, primary: Path) -> None:
    """Raise UserError for a key that nothing would read, or a value of the wrong type.

    At the top only the keys and groups of the ``primary`` yaml may stand; below a ``_target_`` only what its
    constructor takes. Hydra catches a mistyped override by itself, but not a ``+key``, nor a mistake in an
    experiment's yaml.
    """
    check_values(OmegaConf.to_container(config, resolve=True, throw_on_missing=True), primary)


def check_values(tree: Any, primary: Path) -> None:
    """:func:`check_keys` for a configuration that is plain values already."""
    content: Any = OmegaConf.to_container(OmegaConf.load(primary), resolve=False)
    known = [*groups_of(content), *(key for key in content if key not in ("defaults", "hydra"))]
    for key, value in tree.items():
        if key not in known:
            raise UserError(f"{key}: no such key; {nearest(str(key), known)}")
        check_value(value, TYPES.get(key, Any), key)
        check_node(value, key)
    probes = [path.stem for path in (primary.parent / "probe").glob("*.yaml")]
    for name in tree.get("probe") or {}:  # an experiment may set values of a probe that was not chosen, but of no other
        if "_target_" not in (tree["probe"][name] or {"_target_"}) and name not in probes:
            raise UserError(f"probe.{name}: no such probe; {nearest(name, probes, 'probe')}")


def check_node(node: Any, path: str) -> None:
    """Raise UserError for a key below a ``_target_`` that its constructor does not take, or a value of a wrong type."""
    if isinstance(node, list):
        for position, element in enumerate(node):
            check_node(element, f"{path}[{position}]")
    if not isinstance(node, dict):
        return
    taken = parameters_of(node["_target_"], path) if "_target_" in node else {}
    for key, value in node.items():
        if taken and not key.startswith("_"):
            if key not in taken:
                raise UserError(f"{path}.{key}: no such key; {nearest(key, taken, path)}{_of_recipe(f'{path}.{key}')}")
            check_value(value, taken[key].kind, f"{path}.{key}")
        check_node(value, f"{path}.{key}")


def _of_recipe(key: str) -> str:
    """A remedy for a key that an experiment gives, of a part that the command has exchanged."""
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    part, chosen = key.split(".")[0], {override.split("=")[0] for override in task}
    if not {"experiment", part} <= chosen or any(key in override for override in task):
        return ""
    return f"; the experiment sets it for its own {part}: leave it out with ~{key}"


def _check_typed_place(arguments: list[str]) -> None:
    """The same of what was typed: Hydra makes the folder before it calls anybody."""
    typed = dict(argument.split("=", 1) for argument in arguments if argument.startswith(("name=", "run_dir=")))
    given = {key: value.strip("'\"") for key, value in typed.items()}
    check_place({"name": "x", "run_dir": "x"} | given)


def check_no_other_overrides(key: str, *beside: str) -> None:
    """Raise UserError if the command gives any other key but those ``beside``: nothing would read it."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    others = [override for override in given if override.split("=")[0] not in (key, *beside)]
    if others:
        raise UserError(f"{key}=… takes everything else from what it names: leave out {' '.join(others)}")


def check_asked() -> None:
    """Raise UserError for a training that nobody has asked for: neither images nor a part of it is named."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else ["data"]
    if not {override.lstrip("+~").split("=")[0].split(".")[0] for override in given} & CHOICES:
        raise UserError(
            "data: nothing says what to train on; unlabeled train data=PATH takes your images, "
            "unlabeled train experiment=digits is a first run"
        )


def is_sweep() -> bool:
    """Whether this is one job of ``--multirun`` by a process that has others; submitit gives each job its own."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return not str(HydraConfig.get().launcher.get("_target_")).endswith("submitit_launcher.SlurmLauncher")

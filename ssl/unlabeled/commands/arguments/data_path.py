"""``data=PATH`` in place of ``data=folder data.path=PATH``: which source it is, the files say."""

import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from unlabeled.commands.config import conf_folder, own_folders

SIGNS = (  # what lies in a folder, and whose it is
    ("shards", ("*.tar",)),
    ("parquet", ("train.parquet",)),
    ("huggingface", ("dataset_dict.json",)),
    ("litdata", ("train/index.json",)),
)


def with_data_source(arguments: Sequence[str]) -> list[str]:
    """The arguments, where ``data`` names no choice of ``conf/data`` but a place, with the source of that place.

    What is neither is left for Hydra, which knows the nearest choice.
    """
    given = data_path(arguments)
    if given is None:
        return list(arguments)
    path, source = given, source_of_path(Path(given).expanduser())
    named = [f"data={source}", f"data.path={path}"]
    has_test = os.path.isdir(Path(path).expanduser() / "test") and not any(
        a.startswith("data.test=") for a in arguments
    )
    if source in ("huggingface", "litdata") and has_test:
        named.append("data.test=test")
    if source == "shards" and _is_pack_with_test(Path(path).expanduser(), arguments):
        named.append("data.test=test-*.tar")
    return [each for argument in arguments for each in (named if argument.startswith("data=") else [argument])]


def _is_pack_with_test(path: Path, arguments: Sequence[str]) -> bool:
    """Whether ``unlabeled pack`` wrote this folder, a test split with it, and no other key of the split is given."""
    given = any(argument.startswith(("data.test=", "data.labels=")) for argument in arguments)
    return not given and os.path.isfile(path / "pack.json") and any(path.glob("test-*.tar"))


def data_path(arguments: Sequence[str]) -> str | None:
    """The place that ``data=`` gives; None where it gives a choice, or nothing."""
    given = [argument.removeprefix("data=") for argument in arguments if argument.startswith("data=")]
    if len(given) != 1:
        return None
    value = _unquoted(given[0])
    folders = [conf_folder(), *own_folders(arguments)]
    known = {path.stem for folder in folders for path in (folder / "data").glob("*.yaml")}
    is_place = value not in known and bool(value) and ("/" in value or os.path.exists(Path(value).expanduser()))
    return value if is_place else None


def _unquoted(value: str) -> str:
    """What Hydra reads of a text in quotation marks, in which a backslash stands before one of them."""
    mark = value[:1]
    if len(value) < 2 or mark not in "'\"" or value[-1] != mark:
        return value
    return str(OverridesParser.create().parse_override(f"data={value}").value())


def source_of_path(path: Path) -> str:
    """The choice of ``conf/data`` that reads a folder or a file."""
    for source, patterns in SIGNS:
        signed = any(next(path.glob(pattern), None) for pattern in patterns if os.path.isdir(path))
        if signed and not (source == "shards" and _is_unpacked(path)):
            return source
    return "folder"


def _is_unpacked(path: Path) -> bool:
    """Whether images lie beside the archives, which are then what was downloaded, and not shards."""
    from unlabeled.data.lists.listing import first_image  # here: every command of one line would load numpy

    return not os.path.isfile(path / "pack.json") and first_image(path, []) is not None

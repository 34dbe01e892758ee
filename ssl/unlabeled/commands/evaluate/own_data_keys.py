"""``data=…`` of ``transfer``, ``segment`` and ``detect``, which Hydra would take for a choice of ``conf/data``."""

from collections.abc import Sequence

from unlabeled.commands.config import run_module

KEY = "data="


def transfer(arguments: Sequence[str]) -> None:
    """Do ``unlabeled transfer``."""
    run_module("transfer", "unlabeled.commands.evaluate.transfer:transfer", with_sets(arguments))


def segment(arguments: Sequence[str]) -> None:
    """Do ``unlabeled segment``."""
    run_module("segment", "unlabeled.commands.evaluate.segment:segment", with_folder(arguments))


def detect(arguments: Sequence[str]) -> None:
    """Do ``unlabeled detect``."""
    run_module("detect", "unlabeled.commands.evaluate.detect:detect", with_folder(arguments))


def with_sets(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``sets=[…]`` in place of ``data=…``, which may be one name without brackets."""
    return [_as_list(each.removeprefix(KEY)) if each.startswith(KEY) else each for each in arguments]


def with_folder(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``folder=…`` in place of ``data=…`` or ``data.path=…``."""
    given = [each.replace("data.path=", KEY, 1) if each.startswith("data.path=") else each for each in arguments]
    return [f"folder={each.removeprefix(KEY)}" if each.startswith(KEY) else each for each in given]


def _as_list(value: str) -> str:
    listed = value if value.startswith("[") else f"[{value}]" if value else "[]"
    return f"sets={listed}"

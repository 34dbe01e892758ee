"""The text of ``--help``: what a command does, its choices with a sentence each, and what each key may be."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlabeled.commands.checks.values import in_words

WIDTH = 118  # columns
PLACE = "$APP_CONFIG_GROUPS"  # of the choices, in a command's own text


def help_text(primary: dict[str, Any], folders: Sequence[Path], names: Sequence[str], types: Mapping[str, Any]) -> str:
    """Returns the whole text.

    Args:
        primary: content of the command's yaml; ``hydra.help.template`` is its own text.
        folders: ``conf/`` and the user's own, in which groups are looked for.
        names: keys and groups of the command, in their order.
        types: of keys at the top.
    """
    template = str(primary["hydra"]["help"]["template"]).rstrip()
    keys = [f"{key}: {in_words(types[key])}" for key in names if key in types]
    keys = ["", "== Keys (key=value; those of a choice are in docs/keys.md) ==", *keys]
    if PLACE in template:
        groups = [text for name in sorted(names) if (text := _group(name, folders))]
        return "\n".join([template.replace(PLACE, "\n\n".join(groups)), *keys])
    named = [text for name in sorted(names) if (text := _named(name, folders))]
    head = ["", "== Choices (group=option; docs/keys.md has what is in each) =="] if named else []
    return "\n".join([template, *head, *named, *keys])


def _named(name: str, folders: Sequence[Path]) -> str:
    """One group: the names of its choices alone."""
    choices = sorted({path.stem for folder in folders for path in (folder / name).glob("*.yaml")})
    start = f"{name}="
    return textwrap.fill("  ".join(choices), WIDTH, initial_indent=start, subsequent_indent="  ") if choices else ""


def _group(name: str, folders: Sequence[Path]) -> str:
    """One group: each choice with the first sentence of its yaml."""
    choices = {path.stem: first_sentence(path) for folder in folders for path in sorted((folder / name).glob("*.yaml"))}
    if not choices:
        return ""
    column = max(map(len, choices)) + 4
    lines = []
    for choice, sentence in sorted(choices.items()):
        start = f"  {choice}".ljust(column)
        lines.append(textwrap.fill(sentence or "-", WIDTH, initial_indent=start, subsequent_indent=" " * column))
    return "\n".join([f"{name}=", *lines])


def first_sentence(path: Path) -> str:
    """Returns the first comment of a yaml up to the end of its line; Hydra's own ``# @package`` is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((comment for comment in comments if comment and not comment.startswith("@")), "")

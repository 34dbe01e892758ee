"""What was typed, made ready for Hydra: paths and names are taken literally; the rest must be its grammar.

Hydra's own would want ``'data.path="/d/a=b"'``. No torch in here.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from unlabeled.commands.aliases import meant, nearest
from unlabeled.commands.checks.help import help_text
from unlabeled.commands.checks.signatures import parameters_of
from unlabeled.commands.checks.values import LISTS, alternatives, in_words, takes
from unlabeled.commands.keys import TYPES
from unlabeled.core.escaping import for_shell
from unlabeled.core.ranges import InFile
from unlabeled.errors import UserError

KEY = re.compile(r"(\+\+|\+|~)?([^=]*?)=(.*)", re.DOTALL)
HYDRAS = re.compile(r"[A-Za-z_$][\w$/@:.-]*", re.ASCII)  # a key, or a group with its package
HARMLESS = re.compile(r"[A-Za-z_./][\w./:-]*|", re.ASCII)  # a value that Hydra reads as it stands
SPECIAL = {"null", "true", "false", "nan", "inf"}  # what Hydra's grammar makes no text of
# Which labelled images a method may use: one of the three is typed, and then those of a recipe are null
CHOSEN_BY = tuple(f"objective.support.{name}" for name in ("labels_file", "fraction", "per_class"))
ALONE = {"help", "h", "hydra-help", "version", "resolve", "run", "r", "multirun", "m"}
WITH_VALUE = {
    *("cfg", "c", "package", "p", "shell-completion", "sc", "config-path", "cp", "config-name", "cn"),
    *("config-dir", "cd", "experimental-rerun", "info", "i"),
}
SWEEPS = {"-m", "--multirun"}

_typed: list[str] = []


def read_command_line(conf: Path, config_name: str) -> None:
    """Put what Hydra is to read into ``sys.argv``; answer ``--help``.

    Args:
        conf: folder of the yamls.
        config_name: of the primary one.

    Raises:
        UserError: an argument that is no ``key=value``, or one that Hydra could not read.
    """
    _typed[:] = sys.argv[1:]
    reader = Reader(conf, config_name, _typed)
    if {"--help", "-h"} & {*_typed}:
        print(reader.help())
        raise SystemExit(0)
    sys.argv[1:] = reader.arguments()


def settled(arguments: Sequence[str]) -> list[str]:
    """What a command gives to its configuration: no options, and of each list of a sweep its first value."""
    sweeps, found = bool(SWEEPS & {*arguments}), list[str]()
    for before, argument in pairwise(["", *arguments]):
        if argument.startswith("-") or (_option(before) in WITH_VALUE and "=" not in before):
            continue
        key, equals, value = argument.partition("=")
        if sweeps and re.match(r"(choice|range|interval|glob)\(", value):
            continue
        found.append(f"{key}{equals}{_split(value)[0]}" if sweeps and "," in value else argument)
    return found


def as_typed(*program: str) -> str:
    """The command for a shell: what was typed after the words that start the program."""
    return for_shell([*program, *(_typed or sys.argv[1:])])


class Reader:
    """Of one command line.

    Args:
        conf: folder of the yamls.
        config_name: of the primary one.
        typed: what stands after the program.
    """

    def __init__(self, conf: Path, config_name: str, typed: list[str]) -> None:
        self.typed, self.sweeps = typed, bool(SWEEPS & {*typed})
        self.primary: Any = OmegaConf.to_container(OmegaConf.load(conf / f"{config_name}.yaml"))
        own = [
            given.partition("=")[2] or after
            for given, after in pairwise([*typed, ""])
            if _option(given) in ("config-dir", "cd")
        ]
        self.folders = [conf, *(Path(folder) for folder in own)]

    def arguments(self) -> list[str]:
        """For Hydra. Raises UserError for what it could not read."""
        result: list[str] = []
        before = ""
        for position, argument in enumerate(self.typed):
            follows_option = _option(before) in WITH_VALUE and "=" not in before
            result.append(argument if follows_option else self._argument(argument, self.typed[position + 1 :]))
            before = argument
        return result + _without_others(self.typed)

    def _argument(self, argument: str, after: list[str]) -> str:
        if argument.startswith("-"):
            if _option(argument) not in ALONE | WITH_VALUE:
                raise UserError(self._dashes(argument, after))
            return argument
        parts = KEY.fullmatch(argument)
        if parts is None:
            if not argument.startswith("~"):
                images = f"; images are given as data={argument}" if os.path.exists(argument) else ""
                raise UserError(f"{argument}: give key=value, without blanks around the ={images}")
            return argument
        prefix, key, value = parts[1] or "", parts[2], parts[3]
        if not HYDRAS.fullmatch(key):
            raise UserError(f"{key}: no such key; {nearest(key, self._names())}")
        ready = f"{prefix}{key}={value if prefix == '~' else self._value(key, value)}"
        try:
            OverridesParser.create().parse_override(ready)
        except HydraException:
            raise UserError(f"{argument}: {self._remedy(prefix, key, value)}") from None
        return ready

    def _remedy(self, prefix: str, key: str, value: str) -> str:
        kinds = list(self._kinds(key))
        if kinds and not any(_is(kind, str) for kind in kinds):
            return f"must be {in_words(kinds[0])}"
        quoted = f"{prefix}{key}={QuotedString(value, Quote.double).with_quotes()}"
        meaning = "its value has letters that mean something to Hydra; where they are meant as they stand, give"
        return f"{meaning} {for_shell([quoted])}"

    def help(self) -> str:
        """The primary yaml's own text, the choices, and what each key at the top may be."""
        return help_text(self.primary, self.folders, self._names(), TYPES)

    def _names(self) -> list[str]:
        groups = [key for entry in self.primary.get("defaults", []) if isinstance(entry, dict) for key in entry]
        return [key for key in (*self.primary, *groups) if key not in ("defaults", "hydra") and "override" not in key]

    def _dashes(self, argument: str, after: list[str]) -> str:
        """``--lr 0.1`` and ``--lr=0.1`` are ``optimizer.lr=0.1``."""
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals and after and not after[0].startswith("-") and "=" not in after[0]:
            value, argument = after[0], f"{argument} {after[0]}"
        key = name.replace("-", "_")
        known = self._names()
        found = key if key.split(".")[0] in known else meant(key, known)
        if found is None:
            return f"{argument}: no such option; keys are given as key=value, {nearest(key, known)}"
        return f"{argument}: keys are given without dashes: {found}={value or '…'}"

    def _value(self, key: str, value: str) -> str:
        """Quoted where the key holds text or a path."""
        harmless = HARMLESS.fullmatch(value) and value.lower() not in SPECIAL
        if harmless or value == "null" or (self.sweeps and "," in value):
            return value
        kinds = list(self._kinds(key))
        return _quoted(value, kinds) if kinds else value

    def _kinds(self, key: str) -> Iterator[Any]:
        """The types that a key may have; of one in a group, with any choice of that group."""
        if key in TYPES:
            yield TYPES[key]
        group, _, rest = key.partition(".")
        if not rest:
            return
        yield from _kinds_in(self.primary.get(group), rest.split("."))
        for path in self._yamls(group):
            yield from _kinds_in(OmegaConf.to_container(OmegaConf.load(path)), rest.split("."))

    def _yamls(self, group: str) -> list[Path]:
        return [path for folder in self.folders for path in sorted((folder / group).glob("*.yaml"))]


def _without_others(typed: Sequence[str]) -> list[str]:
    """``objective.support.fraction=null`` and the like beside ``objective.support.per_class=4``."""
    given = {key: value for key, _, value in (each.lstrip("+~").partition("=") for each in typed)}
    chosen = any(given.get(key, "null") != "null" for key in CHOSEN_BY)
    return [f"{key}=null" for key in CHOSEN_BY if chosen and key not in given]


def _option(argument: str) -> str | None:
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else None


def _kinds_in(node: Any, names: list[str]) -> Iterator[Any]:
    """The type of what stands at a place of a yaml, from the ``_target_`` that takes it."""
    *path, last = names
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict) and "_target_" in node:
        taken = parameters_of(node["_target_"], ".".join(path)).get(last)
        if taken is not None:
            yield taken.kind


def _quoted(value: str, kinds: list[Any]) -> str:
    if "${" in value or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value  # an interpolation, or quoted for Hydra already
    elements = [each for kind in kinds for each in _elements(kind)]
    if elements and value.startswith("[") and value.endswith("]"):
        return f"[{','.join(_quoted(part.strip(), elements) for part in _split(value[1:-1]))}]"
    if value.startswith("{") and value.endswith("}") and any(_is(kind, dict) for kind in kinds):
        return "{" + ",".join(_pair(part) for part in _split(value[1:-1])) + "}"
    if any(takes(kind, InFile) for kind in kinds):
        return _literal(os.path.expanduser(value))
    return _literal(value) if any(_is(kind, str) for kind in kinds) else value


def _literal(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _pair(text: str) -> str:
    """``checkpoint:FILE`` within braces."""
    key, colon, value = text.partition(":")
    kind = TYPES.get(key.strip())
    return text if kind is None or not takes(kind, InFile) else f"{key}{colon}{_quoted(value.strip(), [kind])}"


def _elements(kind: Any) -> list[Any]:
    """Types of the elements of those lists that a key may have."""
    lists = [each for each in alternatives(kind) if get_origin(each) in LISTS]
    return [element for each in lists for element in get_args(each) if element is not ...]


def _is(kind: Any, wanted: type) -> bool:
    return any(wanted in (each, get_origin(each)) for each in alternatives(kind))


def _split(text: str) -> list[str]:
    """At the commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        quote = "" if letter == quote else quote or (letter if letter in "'\"" else "")
        depth += 0 if quote else {"[": 1, "{": 1, "]": -1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]

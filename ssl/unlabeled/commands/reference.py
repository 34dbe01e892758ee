"""Every key, what it may be, its value in the yamls: ``python -m unlabeled.commands.reference > docs/keys.md``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unlabeled.commands.checks.signatures import ABSENT, parameters_of
from unlabeled.commands.checks.values import in_words
from unlabeled.commands.keys import TYPES

CONF = Path(__file__).parents[3] / "conf"
SHOWN = 4  # values of a key that yamls differ in
HEAD = """# Keys

Written by `python -m unlabeled.commands.reference`: what a key may be is read from the signature that takes it, its
value from the yamls. Besides what is said, every number is finite, whole numbers lie within ±2147483647 and others
within ±1e+12, and no text is empty. A value outside is refused in one line, before anything is read or written.

On the command line `key=value`. What follows the key of a path or of text is taken literally, a path's `~` is expanded;
a path may be a URL where the data source reads one; lists are `[a,b]`; `key=null` where null is allowed.
"""
COMMANDS = {
    "train": "train.py",
    "eval_linear": "eval_linear.py",
    "embed": "unlabeled embed",
    "predict": "unlabeled predict",
    "explore": "unlabeled explore",
    "finetune": "unlabeled finetune",
    "export": "unlabeled export",
    "inspect": "unlabeled inspect",
    "pack": "unlabeled pack",
    "representation": "unlabeled represent",
    "representation_compare": "unlabeled compare",
    "representation_side": "first={…} and second={…} of it",
    "saliency": "unlabeled saliency",
    "table": "unlabeled table",
    "label": "unlabeled label",
    "active": "unlabeled active",
    "transfer": "unlabeled transfer",
    "segment": "unlabeled segment",
    "detect": "unlabeled detect",
    "cluster": "unlabeled cluster",
    "tune": "unlabeled tune",
    "health": "unlabeled health",
}
GROUPS = ("objective", "backbone", "views", "data", "optimizer", "trainer", "probe", "detection", "health", "logger")


def reference(conf: Path = CONF) -> str:
    """The page, Markdown."""
    parts = [HEAD]
    for name, command in COMMANDS.items():
        rows = [f"| `{key}` | {_cell(words)} | {_code(value)} |" for key, words, value in keys_of(conf, name)]
        parts.append("\n".join([f"## `{command}`\n", "| key | may be | unless given |", "|---|---|---|", *rows, ""]))
    for group in GROUPS:
        parts.append(_group(conf, group))
    return "\n".join(parts)


def keys_of(conf: Path, config_name: str) -> Iterator[tuple[str, str, Any]]:
    """Each key at the top of a primary yaml that is no group: its name, what it may be, its value."""
    content: Any = OmegaConf.to_container(OmegaConf.load(conf / f"{config_name}.yaml"))
    for key, value in content.items():
        if key in TYPES:
            yield key, in_words(TYPES[key]), value
        if isinstance(value, dict) and "_target_" in value:
            taken = parameters_of(value["_target_"], key)
            yield from ((f"{key}.{name}", in_words(taken[name].kind), value[name]) for name in value if name in taken)


def _group(conf: Path, group: str) -> str:
    """A table for each thing that yamls of a group build."""
    files = sorted((conf / group).glob("*.yaml"))
    values: dict[str, dict[str, list[Any]]] = {}
    for path in files:
        for target, given in built(OmegaConf.to_container(OmegaConf.load(path))):
            for key, value in given.items():
                values.setdefault(target, {}).setdefault(key, []).append(value)
    tables = [_table(target, values[target]) for target in sorted(values)]
    choices = ", ".join(f"`{path.stem}`" for path in files)
    return "\n".join([f"## `{group}=…`\n", f"{choices}\n", *tables])


def built(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each ``_target_`` at any depth of a yaml, with the values of its keys."""
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"], {key: value for key, value in node.items() if not key.startswith("_")}
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from built(each)


def _table(target: str, values: dict[str, list[Any]]) -> str:
    taken = parameters_of(target, target)
    rows = []
    for name, parameter in taken.items():
        if name not in values and parameter.default is ABSENT:
            continue  # handed over by whoever builds it
        found = values.get(name, [parameter.default])
        if not any(isinstance(value, dict) or _holds_dicts(value) for value in found):
            distinct = list(dict.fromkeys(_code(value) for value in found))
            shown = ", ".join(distinct[:SHOWN]) + (", …" if len(distinct) > SHOWN else "")
            rows.append(f"| `{name}` | {_cell(in_words(parameter.kind))} | {shown} |")
    if not rows:
        return ""
    return "\n".join([f"`{target}`\n", "| key | may be | in the yamls |", "|---|---|---|", *rows, ""])


def _holds_dicts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _code(value: Any) -> str:
    if isinstance(value, dict):
        return "its keys follow"
    if value == "???":
        return "must be given"
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())

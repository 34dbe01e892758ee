"""Every key of every yaml of ``conf/``: its value, and what its comment says of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml  # type: ignore[import-untyped]

from docs.site.troubleshooting import escaped

CONF = Path(__file__).parents[2] / "conf"
PRIMARY = "commands"  # the page of the yamls at the top: one for each command
GROUPS = {
    "objective": "the method",
    "backbone": "the network",
    "views": "the augmentations",
    "data": "where images come from",
    "optimizer": "optimizer and schedule",
    "trainer": "Lightning's trainer",
    "probe": "how features are judged",
    "health": "the monitor",
    "logger": "where metrics go besides metrics.jsonl",
    "experiment": "whole recipes",
}


class Key(NamedTuple):
    """One key of one yaml."""

    path: str  # optimizer.momentum, groups[0].operations[1].sigma
    value: str  # as it is written; "" where keys follow
    comment: str


def keys_of(file: Path) -> list[Key]:
    """All keys of a yaml in its order, at any depth."""
    text = file.read_text(encoding="utf-8")
    node = yaml.compose(text)
    return list(_below(node, "", Comments(text))) if node is not None else []


class Comments:
    """What stands after a value and above a key."""

    def __init__(self, text: str) -> None:
        self.text, self.lines = text, text.splitlines()

    def of(self, key: yaml.Node, value: yaml.Node) -> str:
        """The comments of a key: those above it, that of its line, and those that go on below."""
        ends = isinstance(value, yaml.ScalarNode) or value.flow_style  # on its line; else keys follow
        mark = value.end_mark if ends else key.end_mark
        if mark.line >= len(self.lines) or (mark.line > key.start_mark.line and mark.column == 0):
            mark = key.end_mark
        line, column = mark.line, mark.column
        after = re.search(r"(?:^|\s)#\s?(.*)", self.lines[line][column:])
        below = list(self._going_on(line)) if after else []
        return " ".join([*self._above(key.start_mark.line), *([after[1]] if after else []), *below]).strip()

    def _going_on(self, line: int) -> Iterator[str]:
        for text in self.lines[line + 1 :]:
            found = re.fullmatch(r"\s*#   \s*(.*)", text)
            if found is None:
                return
            yield found[1]

    def _above(self, line: int) -> list[str]:
        found: list[str] = []
        for text in reversed(self.lines[:line]):
            comment = re.fullmatch(r"\s*# ?(?!  )(.*)", text)
            if comment is None:
                break
            found.insert(0, comment[1])
        of_the_file = all(text.startswith("#") for text in self.lines[:line])
        return [] if of_the_file else found

    def head(self) -> str:
        """The comment at the top of the file."""
        found = []
        for text in self.lines:
            if not text.startswith("#"):
                break
            found.append(text[1:])
        return "\n".join(found)


def _below(node: yaml.Node, path: str, comments: Comments) -> Iterator[Key]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            own = f"{path}.{key.value}" if path else str(key.value)
            yield Key(own, _shown(value, comments.text), comments.of(key, value))
            yield from _below(value, own, comments)
    if isinstance(node, yaml.SequenceNode):
        for place, each in enumerate(node.value):
            yield from _below(each, f"{path}[{place}]", comments)


def _shown(node: yaml.Node, text: str) -> str:
    whole = text[node.start_mark.index : node.end_mark.index].strip()
    return whole if isinstance(node, yaml.ScalarNode) or node.flow_style else ""


def pages(conf: Path = CONF) -> dict[str, str]:
    """A page for the commands and one for each group, Markdown, by its path below the site."""
    made = {f"reference/yaml/{PRIMARY}.md": _page("Of the commands", "Commands", sorted(conf.glob("*.yaml")), conf)}
    for group in sorted(each.name for each in conf.iterdir() if each.is_dir()):
        title = f"{group}= ({GROUPS[group]})" if group in GROUPS else f"{group}="
        made[f"reference/yaml/{group}.md"] = _page(f"{group}=", title, sorted((conf / group).glob("*.yaml")), conf)
    return made


def _page(short: str, title: str, files: list[Path], conf: Path) -> str:
    head = (
        f"---\ntitle: {short}\n---\n# {escaped(title)}: keys and their sources\n\n"
        "Read from `conf/` when this site is built: each key, its value, and its comment with the source of the value. "
        "[Every key with its range](../../keys.md) says what else a key may be.\n"
    )
    return "\n".join([head, *(_file(file, conf) for file in files)])


def _file(file: Path, conf: Path) -> str:
    name = file.stem if file.parent == conf else f"{file.parent.name}={file.stem}"
    comments = Comments(file.read_text(encoding="utf-8"))
    rows = [_row(key) for key in keys_of(file) if not key.path.startswith("hydra")]
    table = ["| key | value | what it is, and its source |", "|---|---|---|", *rows] if rows else []
    marked = ['<div class="keys" markdown>\n', *table, "\n</div>"] if rows else []
    return "\n".join([f"## {escaped(name)}\n", _head(comments.head()), "", *marked, ""])


def _head(text: str) -> str:
    """The comment at the top: indented lines are commands."""
    lines = [line.removeprefix(" ") for line in text.splitlines() if "@package" not in line]
    said = [escaped(line) for line in lines if not line.startswith("  ")]
    typed = [line.strip() for line in lines if line.startswith("  ")]
    return "\n".join([*said, *(["", "```bash", *typed, "```"] if typed else [])])


def _row(key: Key) -> str:
    value = f"`` {_cell(key.value)} ``" if "`" in key.value else f"`{_cell(key.value)}`" if key.value else ""
    return f"| `{key.path}` | {value} | {escaped(key.comment)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

"""The pages of Troubleshooting: one for each room of the code, an entry for each message that it can print."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from docs.site.messages import Message, messages
from docs.site.remedies import meaning, remedy
from docs.site.templates import PACKAGE, tree

# A page for each: its title, and the rooms whose messages stand on it.
PAGES = {
    "commands": ("Keys, values and paths of a command", ("commands", "core", "errors", "objective", "__init__")),
    "data": ("Data", ("data",)),
    "views": ("Views", ("views",)),
    "networks": ("Networks, optimizers and weights", ("backbones", "optimizers", "weights")),
    "methods": ("Methods", ("objectives",)),
    "training": ("Training", ("training",)),
    "processes": ("Several processes", ("distributed",)),
    "health": ("Health monitor and dashboard", ("health",)),
    "evaluation": ("Evaluation", ("evaluation", "downstream", "representation", "pages")),
}
OTHERS = "commands"  # has the messages of rooms that no page names
KINDS = {
    "error": ("Errors", "The command ends with exit status 2; this line is the last that it prints."),
    "finding": ("Findings", "The run goes on, unless `health=stop` was given and the network has collapsed."),
    "check": ("Checks of the plan", "Printed before the first step; the run starts all the same."),
    "warning": ("Warnings", "The command goes on."),
    "note": ("Notes", "For information."),
    "reason": ("Reasons", "They stand inside of other messages, which say to which file or image they belong."),
}
INDEX = Path(__file__).with_suffix(".md")  # the first page, with places for what is counted


def pages() -> dict[str, str]:
    """Each page's Markdown, by its path below the site."""
    found = messages()
    known = {room for _, rooms in PAGES.values() for room in rooms}
    rows, made = [], {}
    for name, (title, rooms) in PAGES.items():
        own = [each for each in found if each.room in rooms or (name == OTHERS and each.room not in known)]
        made[f"troubleshooting/{name}.md"] = _page(title, own)
        rows.append(f"| [{title}]({name}.md) | {len(own)} |")
    return {"troubleshooting/index.md": INDEX.read_text().format(count=len(found), rows="\n".join(rows)), **made}


def _page(title: str, found: list[Message]) -> str:
    parts = [f"---\ntitle: {title}\n---\n# {title}: messages\n"]
    for kind, (heading, explained) in KINDS.items():
        own = sorted((each for each in found if each.kind == kind), key=lambda each: (each.file, each.line))
        if own:
            parts.append(f"## {heading}\n\n{explained}\n\n{_entries(own)}")
    return "\n".join(parts)


def _entries(found: Iterable[Message]) -> str:
    parts, before = [], ""
    for each in found:
        if each.file != before:
            parts.append(f"### {_what(each.file)} {{ .file data-file={each.file} }}\n")
        before = each.file
        parts.append(_entry(each))
    return "\n".join(parts)


def _what(file: str) -> str:
    """What a file of the package is for: the first sentence of its own text."""
    first = (ast.get_docstring(tree(PACKAGE / file)) or file).split("\n\n")[0]
    sentence = re.split(r"(?<=[\w)`])(?<! al)(?<! v)[.:;](?:\s|$)", " ".join(first.split()))[0]
    return escaped(re.sub(r":\w+:|``|`", "", sentence))


def _entry(message: Message) -> str:
    lines = [f"#### {escaped(message.text)} {{ .message }}\n"]
    means = meaning(message)
    lines += [f"**Means:** {_linked(means)}\n"] if means else []
    return "\n".join([*lines, f"**Do:** {_linked(remedy(message))}\n"])


def _linked(text: str) -> str:
    """As it is where it holds Markdown of ours, else with the signs of Markdown escaped."""
    return text if "](" in text or "`" in text else escaped(text)


def escaped(text: str) -> str:
    """Text whose signs mean nothing to Markdown or HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|])", r"\\\1", text)

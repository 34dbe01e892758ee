"""Every message that the program can print, read from its source: where it is made, and what it says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docs.site.templates import PACKAGE, Scope, texts, tree

# By the name that is called: the kind of the message. What is no error of one line of its own stands inside another.
ERRORS = {"UserError": "error", "Unwritable": "error"}
REASONS = {"CorruptImage": "reason", "DamagedTar": "reason", "ValueError": "reason", "OSError": "reason"}
LEAST = 10  # letters that are no placeholder: less is another message that is handed on
LEAST_OF_A_NOTE = 20  # less is a heading, or a line of a table
PLACEHOLDER = re.compile("‹[^›]*›")


class Message(NamedTuple):
    """One text that can be printed."""

    kind: str  # error, reason, finding, check, warning, note
    text: str  # ‹name› is filled in when it is printed
    meaning: str  # where it is no part of the text; else ""
    remedy: str  # likewise
    file: str  # below ssl/unlabeled
    line: int

    @property
    def room(self) -> str:
        return self.file.split("/")[0].removesuffix(".py")


def messages(package: Path = PACKAGE) -> list[Message]:
    """All of them, in the order of the files; one text once in a file."""
    found: dict[tuple[str, str], Message] = {}
    for path in sorted(package.rglob("*.py")):
        if "skeletons" not in path.parts:  # what unlabeled new writes
            for each in of_file(path, path.relative_to(package).as_posix()):
                found.setdefault((each.file, each.text), each)
    return list(found.values())


def of_file(path: Path, name: str) -> Iterator[Message]:
    """The messages of one file."""
    for function, node in _calls(tree(path), None):
        scope = Scope(path, function)
        yield from _of_call(node, scope, name)


def _calls(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[ast.AST | None, ast.Call]]:
    """Each call, with the function that it stands in."""
    for child in ast.iter_child_nodes(node):
        within = child if isinstance(child, ast.FunctionDef) else function
        if isinstance(child, ast.Call):
            yield within, child
        yield from _calls(child, within)


def called(node: ast.Call) -> str:
    """The last name of what a call calls."""
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _of_call(node: ast.Call, scope: Scope, name: str) -> Iterator[Message]:
    kind = (ERRORS | REASONS).get(called(node))
    if kind and node.args:
        for text in texts(node.args[0], scope):
            yield from _message(kind, text, ("", ""), name, node)
    elif called(node) == "Rule":
        yield from _finding(node, scope, name, "what", 4)
    elif called(node) == "MetricBound":
        yield from _finding(node, scope, name, "meaning", 4)
    elif called(node) == "Check":
        yield from _check(node, scope, name)
    elif called(node) == "print" or _adds_warning(node):
        yield from _printed(node, scope, name)


def _message(kind: str, text: str, told: tuple[str, str], name: str, node: ast.Call) -> Iterator[Message]:
    words = " ".join(text.split())
    if len(PLACEHOLDER.sub("", words)) >= (LEAST_OF_A_NOTE if kind == "note" else LEAST):
        yield Message(kind, words, *told, name, node.lineno)


def _given(node: ast.Call, keyword: str, place: int) -> ast.AST | None:
    """An argument, by its keyword or its place."""
    named = next((each.value for each in node.keywords if each.arg == keyword), None)
    return named if named is not None else node.args[place] if place < len(node.args) else None


def _said(node: ast.AST | None, scope: Scope) -> str:
    return "; or ".join(texts(node, scope))


def _finding(node: ast.Call, scope: Scope, name: str, said: str, place: int) -> Iterator[Message]:
    """A rule of the health monitor, or a bound that a method gives its metric."""
    first = place + (said == "what")
    meaning, remedy = (_said(_given(node, *of), scope) for of in (("meaning", first), ("remedy", first + 1)))
    title = _said(_given(node, "name", 0), scope)
    what = _said(_given(node, "what", place), scope) if said == "what" else ""
    filled = re.sub(r"\{(\w+)[^}]*\}", r"‹\1›", what)
    text = f"{title}: {filled or meaning}".removeprefix(": ")
    yield from _message("finding", text, (meaning if filled else "", remedy), name, node)


def _check(node: ast.Call, scope: Scope, name: str) -> Iterator[Message]:
    remedy = _said(_given(node, "remedy", 3), scope)
    for text in texts(_given(node, "found", 2), scope):
        yield from _message("check", text, ("", remedy), name, node)


def _adds_warning(node: ast.Call) -> bool:
    of = getattr(node.func, "value", None)
    return called(node) == "append" and (getattr(of, "id", "") or getattr(of, "attr", "")) in ("warnings", "notes")


def _printed(node: ast.Call, scope: Scope, name: str) -> Iterator[Message]:
    for argument in node.args[:1]:
        for text in texts(argument, scope):
            begins, _, rest = text.partition(": ")
            kind = begins if begins in ("error", "warning") else "warning" if _adds_warning(node) else "note"
            yield from _message(kind, rest if begins in ("error", "warning") else text, ("", ""), name, node)


def pattern(message: Message) -> re.Pattern[str]:
    """What a line must be to be this message, whatever was filled in."""
    return re.compile(".*".join(map(re.escape, PLACEHOLDER.split(message.text))))

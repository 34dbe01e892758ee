"""The texts that an expression of the source can be: words as they are printed, names in ‹ › for what is filled in.

Read from the syntax tree, so that nothing is imported and nothing is run.
"""

import ast
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ssl" / "unlabeled"
MOST = 6  # texts of one expression; of more, what varies is a name in ‹ ›
DEPTH = 4  # calls within calls
PASSED_ON = {"str", "escaped", "_one_line", "one_line"}  # of another message, which stands where it is made


class Scope:
    """Where an expression stands: its module, and the function around it, if there is one."""

    def __init__(self, path: Path, function: ast.AST | None = None, depth: int = 0) -> None:
        self.path, self.function, self.depth = path, function, depth

    def within(self, path: Path, function: ast.AST | None) -> "Scope":
        return Scope(path, function, self.depth + 1)


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _top(path: Path) -> dict[str, ast.AST]:
    """What is defined at the top of a module, or is a method of its classes: functions, and values of constants."""
    found: dict[str, ast.AST] = {}
    for node in tree(path).body:
        for each in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(each, ast.FunctionDef):
                found[each.name] = each
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
            found[target.id] = node.value
    return found


@cache
def _imported(path: Path) -> dict[str, Path]:
    """The files of this package from which a module's names come."""
    found = dict[str, Path]()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unlabeled."):
            file = PACKAGE.parent.joinpath(*str(node.module).split(".")).with_suffix(".py")
            found |= {alias.asname or alias.name: file for alias in node.names if file.is_file()}
    return found


def texts(node: ast.AST | None, scope: Scope) -> list[str]:
    """All texts that an expression can be, at most ``MOST``; [] for one that only hands on another message."""
    if isinstance(node, ast.Constant):
        return [str(node.value)] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return _product([_part(value, scope) for value in node.values])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _product([texts(side, scope) or ["‹…›"] for side in (node.left, node.right)])
    if isinstance(node, ast.IfExp):
        return _all_or_none([texts(node.body, scope), texts(node.orelse, scope)])
    if isinstance(node, ast.Name):
        return _of_name(node.id, scope)
    return _of_call(node, scope) if isinstance(node, ast.Call) else []


def _part(node: ast.AST, scope: Scope) -> list[str]:
    if not isinstance(node, ast.FormattedValue):
        return texts(node, scope)
    found = texts(node.value, scope) if isinstance(node.value, ast.Name | ast.Call | ast.IfExp) else []
    worded = [text for text in found if text == "" or len(text) > 1]
    return worded if worded and len(worded) == len(found) else [f"‹{name_of(node.value)}›"]


def _product(parts: list[list[str]]) -> list[str]:
    several = sorted((part for part in parts if len(part) > 1), key=len)
    while several and _size(parts) > MOST:
        longest = several.pop()
        parts = [["‹…›"] if part is longest else part for part in parts]
    return ["".join(each) for each in itertools.product(*parts)]


def _size(parts: list[list[str]]) -> int:
    size = 1
    for part in parts:
        size *= len(part)
    return size


def _of_name(name: str, scope: Scope) -> list[str]:
    if scope.depth > DEPTH:
        return []
    if scope.function is not None:
        own = [value for target, value in _assigned(scope.function) if target == name]
        if own:
            deeper = scope.within(scope.path, scope.function)
            return _all_or_none([texts(value, deeper) for value in own])
    found, path = _definition(name, scope.path)
    return [] if isinstance(found, ast.FunctionDef) else texts(found, scope.within(path, None)) if found else []


def _assigned(function: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _definition(name: str, path: Path) -> tuple[ast.AST | None, Path]:
    if name in _top(path):
        return _top(path)[name], path
    file = _imported(path).get(name)
    return (_top(file).get(name), file) if file else (None, path)


def _of_call(node: ast.Call, scope: Scope) -> list[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name in PASSED_ON and node.args:
        return texts(node.args[0], scope)
    if name == "join" and node.args:
        between = getattr(node.func, "value", None)
        return _listed(node.args[0], getattr(between, "value", ", "), scope)
    if scope.depth > DEPTH:
        return []
    found, path = _definition(name, scope.path)
    if not isinstance(found, ast.FunctionDef):
        return []
    returned = [each.value for each in ast.walk(found) if isinstance(each, ast.Return) and each.value is not None]
    return _all_or_none([texts(value, scope.within(path, found)) for value in returned if not _is_none(value)])


def _listed(node: ast.AST, between: object, scope: Scope) -> list[str]:
    """The words of a constant that is a list or a table, joined by what stands ``between``."""
    while isinstance(node, ast.Call) and name_of(node.func) in ("map", "sorted", "list") and node.args:
        node = node.args[-1]
    found = _definition(node.id, scope.path)[0] if isinstance(node, ast.Name) else None
    entries = found.keys if isinstance(found, ast.Dict) else getattr(found, "elts", [])
    words = [str(each.value) for each in entries if isinstance(each, ast.Constant)]
    return [str(between).join(words)] if words and len(words) == len(entries) else []


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _all_or_none(each: list[list[str]]) -> list[str]:
    found = [text for some in each for text in some]
    return found if all(each) and len(found) <= MOST else []


def name_of(node: ast.AST) -> str:
    """A short name of what an expression stands for."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return "type" if node.attr == "__name__" else node.attr
    if isinstance(node, ast.Subscript):
        return _of_subscript(node)
    if isinstance(node, ast.Call):
        alone = isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords
        inner = name_of(node.args[0]) if alone or (name_of(node.func) == "join" and node.args) else "…"
        return inner if inner != "…" else name_of(node.func)
    return "…"


def _of_subscript(node: ast.Subscript) -> str:
    key = node.slice
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else name_of(node.value)

"""What a ``_target_`` takes, read from its source and not by importing it: torch would take two seconds."""

import ast
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import annotated_types

import unlabeled
from unlabeled.commands.checks.foreign import FOREIGN
from unlabeled.commands.checks.values import Built
from unlabeled.core import ranges
from unlabeled.errors import UserError

PACKAGE = "unlabeled"
FOLDER = Path(unlabeled.__path__[0])
ABSENT = inspect.Parameter.empty


class Taken(NamedTuple):
    """One parameter: its type with its range, and its default, ``ABSENT`` where there is none or it is no literal."""

    kind: Any
    default: Any = ABSENT


def parameters_of(target: str, path: str) -> dict[str, Taken]:
    """Names, types and defaults of what a constructor or function takes.

    Args:
        target: dotted name. Ours are read from source; what is neither ours nor in :data:`FOREIGN` is imported.
        path: where it stands in the configuration, for the message.

    Raises:
        UserError: there is no such thing.
    """
    if target in FOREIGN:
        return _of_function(FOREIGN[target])
    found = _read(target)
    if found is not None:
        return found
    try:
        called = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path}._target_={target}: cannot be found ({error})") from error
    names = inspect.signature(called).parameters
    return {name: Taken(Any, each.default) for name, each in names.items()}


def _of_function(function: Callable[..., Any]) -> dict[str, Taken]:
    types = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    return {name: Taken(types.get(name, Any), each.default) for name, each in parameters.items()}


@cache
def _read(target: str) -> dict[str, Taken] | None:
    module, _, name = target.rpartition(".")
    where = _file_of(module)
    return None if where is None else _in_file(where, name)


def _file_of(module: str) -> Path | None:
    """Of one of our modules or packages; None of others."""
    first, *names = module.split(".")
    place = FOLDER.joinpath(*names)
    found = [path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()]
    return found[0] if first == PACKAGE and found else None


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _in_file(file: Path, name: str) -> dict[str, Taken] | None:
    """What is defined there, or imported from another of our modules."""
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node, file)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(node, file)
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            original = next(each.name for each in node.names if (each.asname or each.name) == name)
            return _read(f"{node.module}.{original}")
    return None


def _of_class(node: ast.ClassDef, file: Path) -> dict[str, Taken] | None:
    constructors = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    if constructors:
        return _arguments(constructors[0], file)
    if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and not _is_derived(each)]
        return {ast.unparse(each.target): _taken(each.annotation, each.value, file) for each in fields}
    bases = [_in_file(file, base.id) for base in node.bases if isinstance(base, ast.Name)]
    return next((base for base in bases if base is not None), None)


def _is_derived(field: ast.AnnAssign) -> bool:
    """Whether a dataclass computes it itself: ``field(init=False)``."""
    return isinstance(field.value, ast.Call) and "init=False" in ast.unparse(field.value)


def _arguments(node: ast.FunctionDef, file: Path) -> dict[str, Taken]:
    given = node.args.posonlyargs + node.args.args
    named = dict(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    defaults: list[ast.expr | None] = [None] * (len(given) - len(node.args.defaults)) + list(node.args.defaults)
    every = [*zip(given, defaults, strict=True), *named.items()]
    return {each.arg: _taken(each.annotation, default, file) for each, default in every if each.arg != "self"}


def _taken(annotation: ast.expr | None, default: ast.expr | None, file: Path) -> Taken:
    kind = Any if annotation is None else _type(annotation, file)
    if isinstance(default, ast.Name):
        default = (_assigned(file, default.id) or (default, file))[0]
    try:
        return Taken(kind, ABSENT if default is None else ast.literal_eval(default))
    except ValueError:
        return Taken(kind)


def _type(annotation: ast.expr, file: Path) -> Any:
    """An annotation as a type; what our ranges, Python's types and the file's own aliases do not name is ``Built``."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    expression = compile(ast.Expression(annotation), str(file), "eval")
    return eval(expression, {"__builtins__": {}}, _Names(file))


KNOWN = {
    **{name: getattr(annotated_types, name) for name in annotated_types.__all__},
    **vars(ranges),
    **{each.__name__: each for each in (int, float, bool, str, list, tuple, dict)},
    **{"Annotated": Annotated, "Any": Any, "Literal": Literal, "Sequence": Sequence},
}


class _Names(dict[str, Any]):
    """What a name in an annotation stands for: Python's types, our ranges, aliases of the file; else ``Built``."""

    def __init__(self, file: Path) -> None:
        super().__init__(KNOWN)
        self.file = file

    def __missing__(self, name: str) -> Any:
        alias = _alias(self.file, name)
        self[name] = Built if alias is None else _type(*alias)
        return self[name]


def _assigned(file: Path, name: str) -> tuple[ast.expr, Path] | None:
    """The right side of ``name = …`` in a file, or in ours that it is imported from."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value, file
        if isinstance(node, ast.ImportFrom) and name in [each.name for each in node.names]:
            other = _file_of(str(node.module))
            return None if other is None else _assigned(other, name)
    return None


def _alias(file: Path, name: str) -> tuple[ast.expr, Path] | None:
    """``Literal[…]`` or the like that a name in an annotation stands for."""
    found = _assigned(file, name)
    return found if found is not None and isinstance(found[0], ast.Subscript | ast.BinOp) else None

"""The pages of Python's names: what a user calls, the contract of a method, and the losses; mkdocstrings fills them."""

import ast
import re
from pathlib import Path

from docs.site.templates import PACKAGE, tree
from docs.site.troubleshooting import escaped

CALLS = "commands.entry_points"
# What the public functions return, by what is asked of it.
RETURNED = {
    "Run": f"{CALLS}.run_from_python",
    "Results": "evaluation.reporting.results",
    "Embeddings": "evaluation.embedding.embeddings",
    "Predicted": "evaluation.heads.predicted",
    "Pretrained": "weights.pretrained",
    "Transform": "weights.pretrained",
    "Finding": "health.diagnosis",
}


def pages() -> dict[str, str]:
    """Each page's Markdown, by its path below the site."""
    return {
        "reference/python/api.md": _calls(),
        "reference/python/contract.md": _contract(),
        "reference/python/losses.md": _losses(),
    }


def homes() -> dict[str, str]:
    """Where each name of ``unlabeled.__all__`` is defined, from the imports of its file."""
    found = dict[str, str]()
    for node in ast.walk(tree(PACKAGE / "__init__.py")):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("unlabeled."):
            found |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _calls() -> str:
    calls = [_of(name) for name in homes().values()]
    returned = [_of(f"unlabeled.{module}.{name}") for name, module in RETURNED.items()]
    return "\n".join(
        [
            "# Functions\n",
            "What `import unlabeled` has; each is a command. [From Python](../../python.md) shows them in use.\n",
            "## Calls\n",
            *calls,
            "## What they return\n",
            *returned,
        ]
    )


def _contract() -> str:
    return "\n".join(
        [
            "# The contract of a method\n",
            "The types between data, views, backbone, method and training loop.",
            "[Add a method](../../guides/add_a_method.md) has examples.\n",
            _of("unlabeled.objective", "show_root_heading: false", "heading_level: 2"),
        ]
    )


def _losses() -> str:
    """A section for each file of a method: its loss functions, and the arguments of its class."""
    parts = [
        "# Losses and methods\n",
        "Losses are functions of tensors, in float32 (or float64, where it is given), on one process and on many. "
        "The arguments of a class are the keys of `objective=`.\n",
    ]
    for path in sorted((PACKAGE / "objectives").glob("*.py")):
        names = public(path)
        if names and path.stem != "__init__":
            first = (ast.get_docstring(tree(path)) or "").split("\n\n")[0]
            parts.append(f"## {path.stem}\n\n{escaped(re.sub(r'``', '', first))}\n")
            parts += [_of(f"unlabeled.objectives.{path.stem}.{name}", "members: false") for name in names]
    return "\n".join(parts)


def public(path: Path) -> list[str]:
    """The functions and classes of a module that have a text and no underscore."""
    return [
        node.name
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_" and ast.get_docstring(node)
    ]


def _of(name: str, *options: str) -> str:
    lines = ["    options:", *(f"      {option}" for option in options)] if options else []
    return "\n".join([f"::: {name}", *lines, ""])

"""Fills templates of pages (Jinja2). Whatever a template shows is escaped, unless it is HTML that this package made."""

from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup


@cache
def macros(template: Path) -> Any:
    """Returns the macros of a template as functions that give HTML; a value that is missing is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = lambda text: breakable(str(text))
    return environment.from_string(template.read_text(encoding="utf-8")).module


def shared() -> Any:
    """Returns the macros that all pages share: those of ``parts.html``."""
    return macros(Path(__file__).with_name("parts.html"))


def safe(html: str) -> "Markup":
    """Marks HTML that this package made, so that a template does not escape it."""
    from markupsafe import Markup

    return Markup(html)


def breakable(text: str) -> "Markup":
    """Allows line breaks after a slash and within a long key: protocols, paths and keys have no spaces."""
    whole = escape(text).replace("/", "/<wbr>")
    return safe(whole if " " in text else whole.replace("_", "_<wbr>").replace(".", ".<wbr>"))

"""Parts of a page that a person reads: titled sections, links to them, tables, folded text; and a page of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unlabeled.core.environment import plain_values
from unlabeled.pages.html import html_page
from unlabeled.pages.section import Section
from unlabeled.pages.style import STYLE
from unlabeled.pages.template import breakable, safe, shared


class Part(NamedTuple):
    """A section of a page; ``html`` is its content, ``kind`` classes of the style. One without a title has no name."""

    title: str
    html: str
    kind: str = ""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def sheet(
    title: str,
    under: Sequence[str],
    headline: str,
    parts: Sequence[Part],
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Returns the text of a page that is an answer, parts, and where the numbers are from; all texts are plain.

    Args:
        title: of the page.
        under: facts below it, on one line.
        headline: the answer, a sentence; "": none.
        parts: in their order.
        facts: plain values, ``command`` among them; None: no provenance.
    """
    command = None if facts is None else str(facts["command"])
    everything = json.dumps(plain_values(facts), indent=2, ensure_ascii=False)
    return html_page(title, STYLE, shared().sheet(title, under, headline, parts, command, everything))


def contents(parts: Sequence[Part]) -> str:
    """Returns links to all parts."""
    return str(shared().contents(parts))


def part_html(part: Part) -> str:
    """Returns a part as HTML."""
    return str(shared().one(part))


def part_of_section(section: Section) -> Part:
    """Returns a part of a section with a plot or pictures, its words above it."""
    return shown_part(section.title, section.words, section.html, section.wide)


def shown_part(title: str, words: str, html: str, wide: bool = True) -> Part:
    """Returns a part with words, plain text, above its pictures or tables."""
    return Part(title, shared().shown(breakable(words), html), "shown wide" if wide else "shown")


def doubts(title: str, sentences: Sequence[str]) -> list[Part]:
    """Returns a marked list of sentences; nothing where there is none."""
    return [Part(title, shared().listed([*map(breakable, sentences)]), "doubts")] if sentences else []


def number_table(head: Sequence[str], lines: Sequence[Sequence[str]], bars: Sequence[float] = ()) -> str:
    """Returns a table whose first column names the lines and whose others hold numbers; all cells are plain text.

    ``bars``: a share from 0 to 1 for each line, drawn in a column of its own.
    """
    return str(shared().numbers(head, lines, bars))


def text_table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Returns a table; cells are plain text, or HTML that is marked as :func:`~unlabeled.pages.template.safe`."""
    return str(shared().texts(head, lines))


def folded(key: str, value: Any) -> str:
    """Returns plain values as JSON, to be opened by a click."""
    return str(shared().folded(key, json.dumps(value, indent=2, ensure_ascii=False)))


def joined(*htmls: str) -> str:
    """Returns HTML of this package, one after another."""
    return safe("").join(map(safe, htmls))


def main_html(*htmls: str) -> str:
    """Returns the body of a page: HTML of this package."""
    return str(shared().main([*map(safe, htmls)]))

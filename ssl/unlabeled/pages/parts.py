"""Parts of a page that a person reads: titled sections, links to them, tables, folded text."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from unlabeled.pages.section import Section


class Part(NamedTuple):
    """A section of a page; ``html`` is its content, ``kind`` classes of the style."""

    title: str
    html: str
    kind: str = ""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def contents(parts: Sequence[Part]) -> str:
    """Returns links to all parts."""
    links = "".join(f'<a href="#{part.anchor}">{escape(part.title)}</a>' for part in parts)
    return f"<nav>{links}</nav>"


def part_html(part: Part) -> str:
    """Returns a part as HTML."""
    kind = f' class="{part.kind}"' if part.kind else ""
    return f'<section id="{part.anchor}"{kind}><h2>{escape(part.title)}</h2>{part.html}</section>\n'


def part_of_section(section: Section) -> Part:
    """Returns a part of a section with a plot or pictures, its words above it."""
    html = f'<p class="quiet">{breakable(section.words)}</p>{section.html}'
    return Part(section.title, html, "shown wide" if section.wide else "shown")


def doubts(title: str, sentences: Sequence[str]) -> list[Part]:
    """Returns a marked list of sentences; nothing where there is none."""
    items = "".join(f"<li>{breakable(each)}</li>" for each in sentences)
    return [Part(title, f"<ul>{items}</ul>", "doubts")] if sentences else []


def text_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table; ``lines`` hold the HTML of the cells."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table class="texts"><tr>{titles}</tr>{rows}</table></div>'


def folded(key: str, value: Any) -> str:
    """Returns plain values as JSON, to be opened by a click."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(key)}</summary><pre>{escape(text)}</pre></details>"


def breakable(text: str) -> str:
    """Allows line breaks after a slash and within a long key: protocols, paths and keys have no spaces."""
    whole = escape(text).replace("/", "/<wbr>")
    return whole if " " in text else whole.replace("_", "_<wbr>").replace(".", ".<wbr>")

"""Builds the server's one page. Its style and scripts are in ``browser/``; nothing is loaded from elsewhere."""

import base64
import hashlib
import re
from pathlib import Path

from unlabeled.pages.html import html_page
from unlabeled.pages.style import COLOURS

_BROWSER = Path(__file__).parent / "browser"
STYLE = COLOURS + (_BROWSER / "watch.css").read_text()
_TEXT, _BLANKS = re.compile("[\"'`/]"), re.compile(r" *([=<>?:,;{}()&|]+) *")  # a line with text is left as it is
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)


def script(path: Path) -> bytes:
    """Returns a script as it is sent: without lines of comments, indentation, and blanks that separate nothing."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    kept = [line for line in lines if line and not line.startswith(("//", "/**", "* ", "*/"))]
    return "\n".join(line if _TEXT.search(line) else _BLANKS.sub(r"\1", line) for line in kept).encode()


SCRIPTS = {f"/{path.name}": script(path) for path in sorted(_BROWSER.glob("*.js"))}
ICON = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<rect width="16" height="16" rx="3" fill="#0b5cad"/>
<path d="M2.5 3.5c1.5 7 4 9 11 9" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round"/></svg>"""
BODY = """<main id="page"><noscript>This page draws itself with JavaScript of its own server.</noscript></main>
<script type="module" src="/watch.js"></script>"""


def page() -> bytes:
    """Returns the HTML."""
    return html_page("Runs", STYLE, BODY).encode()

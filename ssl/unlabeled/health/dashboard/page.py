"""Builds the server's one page. Its style and scripts are beside this file; nothing is loaded from elsewhere."""

import base64
import hashlib
from pathlib import Path

from unlabeled.pages.html import html_page
from unlabeled.pages.style import COLOURS

_HERE = Path(__file__).parent
SCRIPTS = {f"/{name}": _HERE / name for name in ("watch.js", "charts.js")}
STYLE = COLOURS + (_HERE / "watch.css").read_text()
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)
ICON = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<rect width="16" height="16" rx="3" fill="#0b5cad"/>
<path d="M2.5 3.5c1.5 7 4 9 11 9" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round"/></svg>"""
BODY = """<main id="page"><noscript>This page draws itself with JavaScript of its own server.</noscript></main>
<script type="module" src="/watch.js"></script>"""


def page() -> bytes:
    """Returns the HTML."""
    return html_page("Runs", STYLE, BODY).encode()

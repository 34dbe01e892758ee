"""What must hold of the built site: each link leads somewhere, and no page asks another host for anything."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {
    "link": "href",
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "form": "action",
}
ASKED = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


class Page(HTMLParser):
    """The names that one page defines, where it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.names, self.links, self.loads = path, set[str](), set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        address = given.get(LOADING.get(tag, ""))
        if address and (tag != "link" or given.get("rel") != "canonical"):
            self.loads.add(address)


def problems(site: Path) -> list[str]:
    """A line for each dead link, each missing file, and each address of another host that is asked for."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = [problem for page in pages.values() for problem in _of_page(page, pages, site)]
    for style in sorted(site.rglob("*.css")):
        asked = ASKED.findall(style.read_text(encoding="utf-8"))
        found += [f"{style.relative_to(site)}: asks another host for {''.join(each)}" for each in asked]
    return found


def _of_page(page: Page, pages: dict[Path, Page], site: Path) -> list[str]:
    name, found = page.path.relative_to(site), []
    for address in sorted(page.loads):
        if urlsplit(address).netloc:
            found.append(f"{name}: asks another host for {address}")
    for address in sorted(page.links | {each for each in page.loads if not urlsplit(each).netloc}):
        problem = _dead(address, page, pages, site)
        found += [f"{name}: {problem}"] if problem else []
    return found


def _dead(address: str, page: Page, pages: dict[Path, Page], site: Path) -> str:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return ""
    base = site if parts.path.startswith("/") else page.path.parent
    target = page.path if not parts.path else (base / unquote(parts.path).lstrip("/")).resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return f"{address} is not there"
    names = pages[target].names if target in pages else None
    if parts.fragment and names is not None and unquote(parts.fragment) not in names | {"__top", "__skip"}:
        return f"{address}: no such place on that page"
    return ""

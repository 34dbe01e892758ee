"""Which file of the repository is which page of the site, and links between them."""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = "benchmarks/results"
# Pages that are no file below docs/.
ELSEWHERE = {"CONTRIBUTING.md": "guides/add_a_method.md", "CHANGELOG.md": "changes.md"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^(`{3,}|~{3,}).*?^\2\s*$)", re.MULTILINE | re.DOTALL)


def pages_elsewhere() -> dict[str, str]:
    """Pages and pictures that do not lie below ``docs/``: path in the repository → path on the site."""
    found = dict(ELSEWHERE)
    for path in sorted((ROOT / RESULTS).rglob("*")):
        below = path.relative_to(ROOT / RESULTS).as_posix()
        if path.suffix in (".md", ".png"):
            found[f"{RESULTS}/{below}"] = f"benchmarks/{below}"
    return found


def with_links(markdown: str, source: str, elsewhere: dict[str, str]) -> str:
    """The text of a page with links that lead to pages of the site.

    Args:
        markdown: as it stands in the repository.
        source: its path there.
        elsewhere: as :func:`pages_elsewhere` says.
    """
    pieces = FENCE.split(markdown)  # text, whole fence, its marks, text, …
    texts = [LINK.sub(lambda found: _link(found, source, elsewhere), each) for each in pieces[::3]]
    fences = pieces[1::3]
    return "".join(part for pair in zip(texts, [*fences, ""], strict=True) for part in pair)


def _link(found: re.Match[str], source: str, elsewhere: dict[str, str]) -> str:
    picture, text, target = found.groups()
    path, mark, anchor = target.partition("#")
    if "://" in target or target.startswith("mailto:") or not path:
        return found[0]
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    place = elsewhere.get(wanted) or (wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
    if place is None:  # a file of the repository that is no page; one that is not there stays, and is refused
        return text if (ROOT / wanted).exists() else found[0]
    here = elsewhere.get(source) or source.removeprefix("docs/")
    relative = posixpath.relpath(place, posixpath.dirname(here) or ".")
    return f"{picture}[{text}]({relative}{mark}{anchor})"


def with_blank_lines(markdown: str) -> str:
    """A blank line before a list or table that follows a paragraph at once, which GitHub does not need."""
    pieces = FENCE.split(markdown)
    starts = re.compile(r"(?m)^((?![\s\-|*>#]|\d+\. ).*\n)(?=[-*] |1\. |\|)")
    texts = [starts.sub(r"\1\n", each) for each in pieces[::3]]
    return "".join(part for pair in zip(texts, [*pieces[1::3], ""], strict=True) for part in pair)

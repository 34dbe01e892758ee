"""The list of pages, with patterns in place of pages that come and go."""

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any


def filled(nav: Any, places: Iterable[str]) -> Any:
    """``nav`` of mkdocs.yml, each pattern replaced by the pages that match it and that nothing before it has.

    A page that is named anywhere is taken by no pattern, so that ``*.md`` catches those which were forgotten.

    Args:
        nav: as YAML has it, lists and dicts of titles.
        places: of all pages.
    """
    return _filled(nav, sorted(places), set(_named(nav)))


def _filled(nav: Any, places: list[str], taken: set[str]) -> Any:
    if isinstance(nav, dict):
        return {title: _filled(below, places, taken) for title, below in nav.items()}
    if not isinstance(nav, list):
        return nav
    found: list[Any] = []
    for each in nav:
        if isinstance(each, str) and "*" in each:
            matching = [place for place in places if _matches(place, each) and place not in taken]
            found += matching
            taken |= set(matching)
        else:
            found.append(_filled(each, places, taken))
    return found


def _matches(place: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(place, pattern) and place.count("/") == pattern.count("/")


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str) and "*" not in nav:
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _named(each)

"""Counts the files of a data set that are not used, by reason and with examples, so that all of them are reported."""

from collections.abc import Iterable
from typing import Any

from unlabeled.core.reading import shown_path

EXAMPLES = 3  # example names per reason

LeftOut = dict[str, dict[str, Any]]  # reason → {"count": n, "examples": names}: plain values that JSON holds


def leave_out(left: LeftOut, reason: str, name: str | bytes) -> None:
    """Counts one file or member under a reason, which reads well after a number: "broken links"."""
    found = left.setdefault(reason, {"count": 0, "examples": []})
    found["count"] += 1
    if len(found["examples"]) < EXAMPLES:
        found["examples"].append(shown_path(name))


def sum_counts(parts: Iterable[LeftOut]) -> LeftOut:
    """Adds up several counts and keeps the first examples."""
    total: LeftOut = {}
    for part in parts:
        for reason, found in part.items():
            sums = total.setdefault(reason, {"count": 0, "examples": []})
            sums["count"] += found["count"]
            sums["examples"] = (sums["examples"] + found["examples"])[:EXAMPLES]
    return total


def of_corrupt(names: list[str]) -> LeftOut:
    """Counts images that could not be decoded, given by their names or by name and reason."""
    left: LeftOut = {}
    for name in names:
        leave_out(left, "corrupt images or damaged files", name)
    return left


def lines(left: LeftOut) -> list[str]:
    """Returns one line for each reason: "3 broken links (a.png, b.png, c.png)"."""
    return [
        f"{found['count']:,} {reason} ({', '.join(found['examples'])}"
        f"{', …' if found['count'] > len(found['examples']) else ''})"
        for reason, found in left.items()
    ]

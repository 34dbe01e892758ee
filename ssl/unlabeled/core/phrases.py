"""Formats parts of messages: lists of names and errors, in one line."""

from collections.abc import Sequence


def shorten_list(names: Sequence[str]) -> str:
    """Returns the first ten names, and how many there are."""
    return ", ".join(names[:10]) + (f", … ({len(names)})" if len(names) > 10 else "") or "nothing"


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line."""
    return " ".join(str(error).split())

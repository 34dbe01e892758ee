"""Formats parts of messages: lists of names and errors, in one line."""

from collections.abc import Sequence


def shorten_list(names: Sequence[str], most: int = 10) -> str:
    """Returns the first ``most`` names, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "") or "nothing"


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line."""
    return " ".join(str(error).split())

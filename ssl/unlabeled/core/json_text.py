"""Parses JSON from untrusted sources."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Returns plain values. Raises ValueError for any invalid text, including text that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error

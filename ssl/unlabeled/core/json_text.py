"""JSON that may be anybody's."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Plain values. Raises ValueError for whatever is wrong with the text, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error

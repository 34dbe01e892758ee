"""Parses JSON and YAML from untrusted sources: plain values only, limited in depth, and YAML in size."""

import json
import re
from typing import Any

import yaml  # type: ignore[import-untyped]

MOST_BYTES = 4 << 20
MOST_DEPTH, MOST_VALUES = 40, 100_000  # limits of a configuration: ours have 7 levels and some 300 values
_FLOAT = re.compile(  # accepts 1e-3 as OmegaConf does; PyYAML reads it as text
    r"[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C is five times as fast
    """A loader that builds no objects and no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":timestamp", ":float"))]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str | bytes) -> Any:
    """Returns plain values. Raises ValueError for any invalid text; endless aliases are refused."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES >> 20} MiB, and is not read")
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{getattr(error, 'problem', None) or 'no yaml'}{where}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return tree(content)


def tree(value: Any) -> Any:
    """Returns a copy without shared nodes. Raises ValueError if it is too deep or too large, as aliases can make it."""
    left = [MOST_VALUES]

    def copied(value: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > MOST_DEPTH or left[0] < 0:
            raise ValueError("nested too deeply or too long for a configuration")
        if isinstance(value, dict):
            return {key: copied(each, depth + 1) for key, each in value.items()}
        return [copied(each, depth + 1) for each in value] if isinstance(value, list | tuple) else value

    return copied(value, 0)


def parse_json(text: str | bytes) -> Any:
    """Returns plain values. Raises ValueError for any invalid text, including text that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error

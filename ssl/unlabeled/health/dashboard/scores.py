"""Reads the final scores of a run from the ``results.json`` of its report."""

import re
from collections.abc import Mapping
from typing import Any

from unlabeled.core.parsing import parse_json
from unlabeled.health.dashboard.documents import finite_or_none

MOST = 40  # scores of a run; a report has some twenty
_FEW = re.compile(r"/(\d+) per class\b")


def read_results(text: bytes) -> dict[str, Any]:
    """Parses the file and keeps what the page shows: of 200 runs the whole would fill memory. Raises ValueError."""
    results = parse_json(text)
    if not isinstance(results, dict):
        raise ValueError("it holds no keys and values")
    provenance = results.get("provenance")
    command = provenance.get("command") if isinstance(provenance, dict) else None
    return {"scores": final_scores(results), "command": command if isinstance(command, str) else None}


def final_scores(results: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Returns protocol, short name and top-1 in per cent of the pretrained features; malformed rows are left out."""
    rows = results.get("rows")
    known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    found = [
        (str(row.get("protocol"))[:200], finite_or_none(row.get("top1")))
        for row in known
        if row.get("features") == "pretrained" and row.get("protocol")
    ]
    return [(protocol, short_name(protocol), value) for protocol, value in found if value is not None][:MOST]


def short_name(protocol: str) -> str:
    """Returns a name for the head of a column, e.g. ``k-NN 20`` or ``5 labels a class``."""
    first, *_ = protocol.split("/")
    k = re.search(r"/k=(\d+)", protocol)
    name = {"knn": "k-NN", "kmeans": "k-means", "classifier": "own classifier"}.get(first, first.replace("-", " "))[:20]
    name += f" {k[1]}" if k and first in ("knn", "kmeans", "clusters") else ""
    few = _FEW.search(protocol)
    if few is None:
        return name
    labels = f"{few[1]} label{'' if few[1] == '1' else 's'} a class"
    return labels if first == "linear" else f"{name}, {labels}"

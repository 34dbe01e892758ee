"""The page of an exploration: one HTML file with its data, its pictures and its script inside; it asks for nothing."""

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.source import shared_folder
from unlabeled.evaluation.exploring.findings import Findings
from unlabeled.evaluation.exploring.thumbnails import Thumbnails, per_row, sheets
from unlabeled.evaluation.selection.nearest import usual_similarity
from unlabeled.pages.html import html_page, script_json
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.style import COLOURS

_HERE = Path(__file__).parent
STYLE = COLOURS + (_HERE / "explore.css").read_text(encoding="utf-8")
SCRIPT = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("data.js", "map.js", "panels.js", "start.js"))
UNUSUAL = 200  # images of the list of outliers
SHADES = 12  # of how unusual an image is
NO_SCRIPT = "<noscript>This page draws itself with a script that lies in it; nothing is fetched.</noscript>"


def explore_page(title: str, facts: Sequence[str], found: Findings, made: Thumbnails) -> Iterator[str]:
    """Yields the text of the page in parts, the pictures last: a browser draws the map before it has read them.

    Args:
        title: plain text.
        facts: a few words each, below the title.
        found: what is shown.
        made: of the same images.
    """
    script = f'"use strict";\n(() => {{\n{SCRIPT}\n}})();'
    head = f'<meta http-equiv="Content-Security-Policy" content="{_policy(STYLE, script)}">'
    about = " · ".join(escape(fact) for fact in facts)
    top = f'<header><h1>{escape(title)}</h1><p class="quiet">{about}</p></header>'
    body = f'{top}<main id="page">{NO_SCRIPT}</main>\n{_data(found, made)}<script>{script}</script>\n'
    before, _, after = html_page(title, STYLE, f"{body}\0", head).partition("\0")
    yield before
    for sheet in sheets(made):
        yield f'<script type="text/plain" class="sheet">{sheet}</script>\n'
    yield after


def _policy(style: str, script: str) -> str:
    """Lets the browser run this script and load nothing from anywhere, whatever a name may hold."""
    allowed = {"style-src": style, "script-src": script}
    hashes = (f"{kind} 'sha256-{_sha256(text)}'; " for kind, text in allowed.items())
    return f"default-src 'none'; img-src data: blob:; {''.join(hashes)}base-uri 'none'; form-action 'none'"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(found: Findings, made: Thumbnails) -> str:
    clusters = found.clusters
    members = np.concatenate([clusters.members(number) for number in range(len(clusters))])
    order = np.argsort(-found.unusual, kind="stable")[:UNUSUAL]
    arrays: dict[str, NDArray[Any]] = {
        "positions": (found.positions * 65535).round().astype("<u2"),
        "cluster": clusters.assigned.astype("<u2"),
        "members": members.astype("<u4"),
        "label": found.embeddings.labels.astype("<i4"),
        "near": found.near.astype("<u4"),
        "cosine": ((found.cosines.clip(-1, 1) + 1) / 2 * 65535).round().astype("<u2"),
        "unusual": found.unusual.astype("<f4"),
        "outliers": order.astype("<u4"),
        "typical": found.typical.astype("<u4"),
        "covering": found.covering.astype("<u4"),
    }
    blocks = (
        f'<script type="text/plain" id="{name}">{base64.b64encode(array.tobytes()).decode()}</script>\n'
        for name, array in arrays.items()
    )
    about = script_json(_about(found, made))
    return f'<script type="application/json" id="about">{about}</script>\n{"".join(blocks)}'


def _about(found: Findings, made: Thumbnails) -> Mapping[str, Any]:
    names = [_path(name) for name in found.embeddings.names]
    root = shared_folder(names) if all(map(os.path.isabs, names)) else ""
    splits = list(dict.fromkeys(found.embeddings.splits))
    return {
        "root": root,
        "names": [name.removeprefix(root) for name in names],
        "classes": found.embeddings.classes,
        "splits": splits,
        "split": [splits.index(each) for each in found.embeddings.splits] if len(splits) > 1 else [],
        "neighbours": found.near.shape[1],
        "similarity": usual_similarity(found.cosines),
        "method": found.method,
        "ownClusters": found.clusters.own,
        "side": made.shape[1],
        "perRow": per_row(made.shape[1]),
        "colours": {
            "cluster": _colours(len(found.clusters)),
            "class": _colours(len(found.embeddings.classes)),
            "split": _colours(len(splits)),
            "unusual": _shades(),
        },
    }


def _path(name: str) -> str:
    """The name that a list of images needs, wherever the list lies: a whole path where it is one of a file."""
    return os.path.abspath(name) if os.path.isfile(name) else name


def _colours(count: int) -> list[str]:
    """Names of variables of the page: those of ``class_colour``, in the light and in the dark."""
    return [f"--colour-{number % len(PALETTE)}" for number in range(count)]


def _shades() -> list[str]:
    import matplotlib

    return [_hex(matplotlib.colormaps["viridis"](0.1 + 0.9 * shade / (SHADES - 1))) for shade in range(SHADES)]


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * each):02x}" for each in colour[:3])

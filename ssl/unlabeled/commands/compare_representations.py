"""CKA of all layers of two networks.

``unlabeled compare first=A second=B out=cka.png``
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.representation import build_compared_networks
from unlabeled.commands.config import run_module
from unlabeled.core.environment import git_state, plain_values, versions
from unlabeled.core.writing import kept_anyway, save_plot, write_atomic
from unlabeled.data.fingerprint import fingerprint
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.representation.comparison import ComparedNetwork, LayerSimilarities, compare
from unlabeled.representation.figures import matrices
from unlabeled.representation.layers import POOLING


def compare_command(config: Any, resolved: dict[str, Any]) -> None:
    """Write the picture and its numbers.

    Args:
        config: as composed from ``conf/representation_compare.yaml``.
        resolved: the same as plain values.
    """
    out = Path(resolved["out"]).expanduser()
    first, second, data, source, device = build_compared_networks(config)
    found = compare(first, second, data, source, resolved["images"], resolved["batch_size"], resolved["seed"], device)
    values = {
        "command": typed_command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "estimator": "linear CKA, unbiased HSIC₁ over mini-batches",
        "pooling": POOLING,
        "images": found.images,
        "batch_size": resolved["batch_size"],
        "data": f"{resolved['split']} split of {data.splits.description}",
        "fingerprint": fingerprint(source, moved=True),
        "seed": resolved["seed"],
        "first": network_values(first) | {"layers": found.layers[0], "matrix": found.first.tolist()},
        "second": network_values(second) | {"layers": found.layers[1], "matrix": found.second.tolist()},
        "across": found.across.tolist(),
        "git": git_state(),
        "versions": versions(),
    }
    text = json.dumps(plain_values(values), indent=2, allow_nan=False, ensure_ascii=False)
    print(nearest_layers(found, first.name, second.name))

    def write(folder: Path) -> None:
        write_atomic(folder / out.with_suffix(".json").name, text + "\n")
        draw_matrices(found, first.name, second.name, folder / out.name)

    kept_anyway(out.parent, write)
    print(f"the picture is {out}, the numbers are in {out.with_suffix('.json')}")


def draw_matrices(found: LayerSimilarities, first: str, second: str, path: Path) -> None:
    """Each network with itself, and between them the one with the other."""
    a, b = (first, found.layers[0]), (second, found.layers[1])
    save_plot(path, matrices([(found.first, a, a), (found.across, a, b), (found.second, b, b)]))


def nearest_layers(found: LayerSimilarities, first: str, second: str) -> str:
    """For each layer of the first network the layer of the second that is most like it: Markdown."""
    best, which = found.across.max(1)
    lines = [
        f"| {name} | {found.layers[1][int(other)]} | {value:.3f} |"
        for name, other, value in zip(found.layers[0], which.tolist(), best.tolist(), strict=True)
    ]
    return "\n".join([f"| {first} | most like, in {second} | CKA |", "|---|---|---:|", *lines])


def network_values(side: ComparedNetwork) -> dict[str, Any]:
    """Which network it was and what it saw."""
    checkpoint = {"random_start": side.seed} if side.checkpoint is None else checkpoint_provenance(side.checkpoint)
    return {"name": side.name, "checkpoint": checkpoint, "transform": side.views.evaluation()}


if __name__ == "__main__":
    run_module("representation_compare", compare_command)

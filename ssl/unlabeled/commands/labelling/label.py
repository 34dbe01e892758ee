"""The images to label next: ``unlabeled label run=outputs/NAME data=POOL out=next.csv``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlabeled.commands.build.labelling import build_classifier, build_pool
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.pool import pool_features
from unlabeled.evaluation.selection.known_labels import KnownLabels, read_known_labels
from unlabeled.evaluation.selection.wanted import Wanted, choose_wanted, write_wanted
from unlabeled.weights.starting.named import read_named


def label(config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print) -> Wanted:
    """Chooses images and writes their list.

    Args:
        config: as composed from ``conf/label.yaml``.
        resolved: the same as plain values.
        log: takes lines.

    Raises:
        UserError: a mistake, or fewer images without a label than ``n``.
    """
    checkpoint = read_named(resolved["run"], resolved["checkpoint"], resolved["weights"])
    embedder, images = build_pool(config, checkpoint)
    source = images.sources["train"]
    known = _known(resolved["labels"], source)
    left = len(source) - len(known.rows)
    if resolved["n"] > left:
        raise UserError(f"n={resolved['n']}: only {left:,} images have no label yet; give a smaller n")
    features = pool_features(embedder, images, log)
    wanted = choose_wanted(
        resolved["strategy"], features, known, source, resolved["n"], build_classifier(config), resolved["seed"]
    )
    if resolved["out"] is not None:
        out = Path(resolved["out"]).expanduser()
        write_wanted(out, wanted, source)
        log(f"{out}: {len(wanted.names):,} of {left:,} images without a label, by strategy={resolved['strategy']}")
    return wanted


def _known(labels: str | None, source: Any) -> KnownLabels:
    if labels is None:
        return KnownLabels([], [], list(source.classes))
    return read_known_labels(Path(labels).expanduser(), f"labels={labels}", source)

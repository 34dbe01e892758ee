"""Writes the page of an exploration: what is found in the features, and how the images look."""

from collections.abc import Callable
from pathlib import Path

from unlabeled.core.escaping import escaped
from unlabeled.core.writing import write_atomic
from unlabeled.evaluation.exploring.findings import Findings, find
from unlabeled.evaluation.exploring.images import Explored
from unlabeled.evaluation.exploring.page import explore_page
from unlabeled.evaluation.selection.clusters import Clusters


def write_page(
    out: Path,
    explored: Explored,
    about: list[str],
    log: Callable[[str], None],
    clusters: int | Clusters | None = None,
    label_next: int = 50,
    seed: int = 0,
) -> Findings:
    """Finds what there is to say of the images, and writes the page.

    Args:
        out: the file.
        explored: the images.
        about: facts below the title: where features and images come from.
        log: takes lines.
        clusters, label_next, seed: as :func:`find`.

    Raises:
        UserError: more clusters than images, or the file cannot be written.
    """
    count = len(explored.embeddings)
    log(f"{count:,} images: their neighbours, clusters and map")
    found = find(explored.embeddings, clusters, label_next, seed)
    drawn = f" of {explored.total:,}" if count < explored.total else ""
    facts = [*map(escaped, about), f"map: {found.method}"]
    title = f"{count:,} image{'s' * (count != 1)}{drawn}"
    write_atomic(out, "".join(explore_page(title, facts, found, explored.thumbnails)))
    return found

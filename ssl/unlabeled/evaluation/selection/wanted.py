"""The list of the images to label next."""

import csv
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unlabeled.core.escaping import is_formula
from unlabeled.core.writing import write_atomic
from unlabeled.data.source import Source, common_folder
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.selection.classifier import LabelClassifier
from unlabeled.evaluation.selection.course import next_rows
from unlabeled.evaluation.selection.known_labels import KnownLabels
from unlabeled.evaluation.selection.strategies import NEED_LABELS


@dataclass(frozen=True)
class Wanted:
    """Images to label, the most wanted first."""

    names: list[str]  # as the data call them
    ids: list[int]  # positions in the training split
    strategy: str


def choose_wanted(
    strategy: str,
    pool: Features,
    known: KnownLabels,
    source: Source,
    count: int,
    classifier: LabelClassifier,
    seed: int,
) -> Wanted:
    """Chooses ``count`` images of a pool that have no known label.

    Args:
        strategy: a name of ``STRATEGIES``.
        pool: features of those images of ``source`` that decode; ``ids`` are positions there.
        known: labels that are known; of images that do not decode they are not used.
        source: names the images.
        count: how many.
        classifier: asked by some strategies.
        seed: of random draws and of k-means.

    Raises:
        UserError: fewer images without a label than ``count``; or labels are needed and no labelled image decodes.
    """
    place = {id: row for row, id in enumerate(pool.ids.tolist())}
    told = [(place[id], label) for id, label in zip(known.rows, known.labels, strict=True) if id in place]
    if not told and strategy in NEED_LABELS:
        raise UserError(
            f"strategy={strategy}: it asks a classifier of the labelled images, and none of the {len(known.rows)}"
            " can be decoded: give more labels, or strategy=typical"
        )
    rows = [row for row, _ in told]
    labels = torch.tensor([label for _, label in told], dtype=torch.long)
    labelled = replace(pool.rows(torch.tensor(rows, dtype=torch.long)), labels=labels)
    chosen = next_rows(strategy, pool, labelled, rows, count, classifier, seed)
    ids = pool.ids[torch.from_numpy(chosen)].tolist()
    return Wanted([source.name(id) for id in ids], ids, strategy)


def write_wanted(out: Path, wanted: Wanted, source: Source) -> None:
    """Writes a list of images.

    ``.txt`` has a name in each line, as a ``labels_file``. ``.csv`` has columns ``path`` and ``label``, the second
    empty to be filled in: it can be given as ``labels=`` and, of files, as ``data=``. Paths are relative to the list's
    folder where the images are below it.

    Raises:
        Unwritable: the file cannot be written.
    """
    if out.suffix.lower() == ".txt":
        root = common_folder(source)
        write_atomic(out, "".join(f"{name.removeprefix(root)}\n" for name in wanted.names))
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label"])
    table.writerows([_path(name, out), ""] for name in wanted.names)
    write_atomic(out, text.getvalue())


def _path(name: str, out: Path) -> str:
    """A name that a spreadsheet would compute gets ./ before it, which changes no path."""
    if os.path.isfile(name):
        folder, file = os.path.abspath(out.parent), os.path.abspath(name)
        name = os.path.relpath(file, folder) if file.startswith(os.path.join(folder, "")) else file
    return f"./{name}" if is_formula(name) else name

"""Writes the test images with the least certain predictions as a table: those to inspect, or to label, next."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.core.escaping import in_csv
from unlabeled.core.writing import write_atomic
from unlabeled.evaluation.uncertainty.members import entropy


def write_least_certain(
    path: Path,
    names: Sequence[str],
    labels: Tensor,
    log_probabilities: Tensor,
    scores: dict[str, Tensor],
    classes: Sequence[str] = (),
) -> None:
    """Writes a CSV with one image a line: name, label, predicted, probability, entropy (nats), then each score.

    Lines are sorted by entropy, largest first, equal ones in their original order. Only the column ``label`` depends on
    the labels; it is empty where there is none.

    Args:
        names: one for each of N images.
        labels: int64 [N], -1 where there is none.
        log_probabilities: [N, C].
        scores: further ones [N], e.g. ``Score.uncertainty``; one named entropy is not repeated.
        classes: their names; numbers without them.
    """
    doubt = entropy(log_probabilities.double())
    likely, predicted = log_probabilities.double().exp().max(dim=1)
    columns = {"probability": likely, "entropy": doubt} | {k: v for k, v in scores.items() if k != "entropy"}
    numbers = torch.stack([column.double().cpu() for column in columns.values()], dim=1).tolist()
    called = [*(classes or map(str, range(log_probabilities.shape[1]))), ""]  # the last name, at -1, is for no label
    order = doubt.argsort(descending=True, stable=True).tolist()
    label_of, predicted_of = labels.tolist(), predicted.tolist()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "label", "predicted", *columns])
    for row in order:
        values = [f"{number:.6g}" for number in numbers[row]]
        texts = map(in_csv, (names[row], called[label_of[row]], called[predicted_of[row]]))
        table.writerow([*texts, *values])
    write_atomic(path, text.getvalue())

"""Stores the class that each row of a report predicts for each test image, to compare runs image by image.

``predictions.safetensors`` holds ``labels`` and ``ids`` of the test images, int64 [N], and for each row
``{features}|{protocol}``, int32 [N]; ``log_probabilities|{features}|{protocol}``, float16 [N, C], where there are some.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.core.writing import save_safetensors
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.features import top1
from unlabeled.evaluation.statistics import Interval, accuracy_interval, draws_interval

NAME = "predictions.safetensors"
LOG_PROBABILITIES = "log_probabilities"
MOST_BYTES = 64 * 2**20  # bytes of all log-probabilities: ten rows of 10,000 images and 300 classes, not ImageNet's
WHOLE = (torch.int32, torch.int64)
Key = tuple[str, str]  # features, protocol


@dataclass
class Predictions:
    """Contents of ``predictions.safetensors``."""

    labels: Tensor  # int64 [N]
    ids: Tensor  # int64 [N]
    classes: Mapping[Key, Tensor]  # int64 [N], of each row by its features and protocol
    log_probabilities: Mapping[Key, Tensor]  # float32 [N, C], exact to three digits


def write_predictions(folder: Path, rows: Sequence[Row], labels: Tensor, ids: Tensor) -> Path:
    """Writes the predictions of all rows that have some, atomically: a kill while writing leaves the old file.

    ``labels``, ``ids``: int64 [N] of the test images, in the order of ``Row.predictions``. Log-probabilities are left
    out from the row on with which they would take more than 64 MiB. Raises ValueError where two rows have the same
    features and protocol, or a row's predictions are not N.
    """
    tensors = {"labels": labels.cpu().long().contiguous(), "ids": ids.cpu().long().contiguous()}
    room = MOST_BYTES
    for row in rows:
        if row.predictions is None:
            continue
        key = f"{row.features}|{row.protocol}"
        if key in tensors:
            raise ValueError(f"two rows are {key}: a protocol's name must say what makes numbers differ")
        if len(row.predictions) != len(labels):
            raise ValueError(f"{key}: {len(row.predictions)} predictions of {len(labels)} test images")
        tensors[key] = row.predictions.cpu().int().contiguous()
        if row.log_probabilities is not None:
            room -= 2 * row.log_probabilities.numel()
            if room >= 0:
                tensors[f"{LOG_PROBABILITIES}|{key}"] = row.log_probabilities.cpu().half().contiguous()
    save_safetensors(folder / NAME, tensors)
    return folder / NAME


def read_predictions(folder: Path) -> Predictions:
    """Reads the predictions in a report's folder.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / NAME
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; evaluate that run again with eval_linear.py, which writes it")
    try:
        tensors = load_file(path)
        labels, ids = tensors.pop("labels"), tensors.pop("ids")
        _check(labels, ids, tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); evaluate that run again with eval_linear.py") from error
    names = [name for name in tensors if not name.startswith(f"{LOG_PROBABILITIES}|")]
    found = {_key(name): tensors[name].long() for name in names}
    logs = {_key(name): tensors.get(f"{LOG_PROBABILITIES}|{name}") for name in names}
    return Predictions(labels, ids, found, {key: each.float() for key, each in logs.items() if each is not None})


def _check(labels: Tensor, ids: Tensor, others: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless all rows are of the same images."""
    logs = {name: tensor for name, tensor in others.items() if name.startswith(f"{LOG_PROBABILITIES}|")}
    numbers = [labels, ids, *(tensor for name, tensor in others.items() if name not in logs)]
    wrong = [tensor for tensor in numbers if tensor.dtype not in WHOLE or tensor.shape != (len(labels),)]
    wrong += [tensor for tensor in logs.values() if tensor.ndim != 2 or len(tensor) != len(labels)]
    if wrong or labels.ndim != 1:
        raise ValueError("its tensors are not of the same images")


def add_intervals(rows: Iterable[Row], labels: Tensor) -> None:
    """Fills ``Row.interval`` in place, from the row's predictions, or from its draws where ``top1`` is their mean.

    ``labels`` int64 [N] of the test images. A row whose predictions do not give its ``top1`` gets a note, and no
    interval.
    """
    n = len(labels)
    for row in rows:
        if row.draws:
            row.interval = draws_interval(row.draws, n)
        elif row.predictions is not None:
            found = top1(row.predictions.cpu(), labels.cpu())
            if not gives(row.predictions, labels, row.top1):
                row.notes.append(f"The predictions kept give {found:.2f} %: the probe does not return what it counts.")
            else:
                row.interval = accuracy_interval(round(found * n / 100), n)


def gives(predictions: Tensor, labels: Tensor, score: float) -> bool:
    """Returns whether predictions int64 [N] have this accuracy in per cent, up to what a report rounds."""
    return abs(top1(predictions.cpu(), labels.cpu()) - score) <= 1e-3


def count_interval(row: Row, n: int) -> Interval:
    """Computes an interval from the row's numbers alone, for a report that holds none; ``n`` test images."""
    return draws_interval(row.draws, n) if row.draws else accuracy_interval(round(row.top1 * n / 100), n)


def _key(name: str) -> Key:
    features, _, protocol = name.partition("|")
    return features, protocol

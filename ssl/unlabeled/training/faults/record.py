"""Writes and reads the file of a skipped step: all that is needed to compute it again, as plain tensors and values."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlabeled import distributed
from unlabeled.core.file_config import as_data
from unlabeled.core.writing import Unwritable, save_tensors
from unlabeled.distributed.fsdp import full_tensor
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Progress, Support
from unlabeled.training.faults.diagnosis import NonFiniteFinding
from unlabeled.views.key import ViewKey

if TYPE_CHECKING:
    from unlabeled.training.pretraining import Pretraining

# The fields of a record with their types. A number is an integer; a tuple names fields that are all numbers.
KINDS: dict[str, Any] = {
    "config": dict,
    "progress": Progress._fields,
    "key": ViewKey._fields,
    "rank": int,
    "world_size": int,
    "precision": str,
    "batch": dict,
    "support": dict | None,
    "companions": dict | None,  # not in records of earlier versions
    "state_dict": dict,
    "named": str,
}


def write_record(path: Path, module: "Pretraining", batch: Batch, finding: NonFiniteFinding, keep: bool) -> None:
    """Writes the inputs of the next step on one process; the file is written atomically.

    Collective: every process must call it, since weights may be sharded. The file can be read by
    ``torch.load(weights_only=True)``. Steps in it are counted from 0, as in every key; the file's name counts from 1,
    as ``metrics.jsonl``.

    Args:
        path: of the file; its folder is made.
        module: with the state before the step.
        batch: of this process, without views.
        finding: what was bad.
        keep: whether this process writes the file.
    """
    state = {name: full_tensor(value, keep) for name, value in module.objective.state_dict().items()}
    if not keep:
        return
    record = {
        "config": module.config,
        "progress": module.progress._asdict(),
        "key": module.view_key(batch)._asdict(),
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "precision": module.trainer.precision,
        "batch": without_views(batch),
        "support": None if batch.support is None else without_views(batch.support),
        "companions": None if batch.companions is None else without_views(batch.companions),
        "state_dict": state,
        "named": str(finding),
    }
    try:
        save_tensors(path, record)
    except Unwritable as error:  # the step is skipped anyway, and the run continues
        print(f"warning: {error}; this step cannot be replayed")


def read_record(path: str) -> dict[str, Any]:
    """Reads a file of :func:`write_record`, with current class names in its configuration; builds no object.

    Raises:
        UserError: any other file.
    """
    if not os.path.isfile(path):
        raise UserError(f"replay={path}: no such file; a run writes them to its folder faults/")
    try:
        record: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any kind of error: the file may be anything
        raise UserError(f"replay={path}: cannot be read as tensors and plain values") from error
    if not isinstance(record, dict) or not {"key", "batch", "named"} <= record.keys():
        raise UserError(f"replay={path}: holds no step; give a file of a run's folder faults/")
    wrong = [name for name, kind in KINDS.items() if not _is(record.get(name), kind)]
    batches = [each for each in (record.get("batch"), record.get("companions")) if each is not None]
    if not wrong and not (all(map(_whole_batch, batches)) and _support(record["support"])):
        wrong = ["batch or support"]
    if wrong:
        raise UserError(f"replay={path}: its {wrong[0]} is not what a run writes: damaged, or no record of a step")
    return record | {"config": as_data(record["config"], f"replay={path}")}


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return isinstance(value, dict) and set(value) == set(kind) and all(type(each) is int for each in value.values())
    return isinstance(value, kind) and not isinstance(value, bool)


def _whole_batch(batch: dict[str, Any]) -> bool:
    """Returns whether the batch has images with one id and one label each."""
    images, rows = batch.get("images"), [batch.get(name) for name in ("ids", "labels")]
    tensors = all(isinstance(each, torch.Tensor) for each in (images, *rows)) and set(batch) <= set(Batch._fields)
    return tensors and images.ndim == 4 and all(each.shape == images.shape[:1] for each in rows)  # type: ignore[union-attr]


def _support(support: dict[str, Any] | None) -> bool:
    """Returns whether it is None, or a dict of tensors with the names of a support's fields."""
    tensors = all(isinstance(each, torch.Tensor) for each in (support or {}).values())
    return support is None or (tensors and {"images", "ids", "slots"} <= set(support) <= set(Support._fields))


def without_views(images: Batch | Support) -> dict[str, Any]:
    """Returns the decoded data: images, ids, labels or slots, and sizes, without views."""
    return {name: value.cpu() for name, value in images._asdict().items() if isinstance(value, torch.Tensor)}

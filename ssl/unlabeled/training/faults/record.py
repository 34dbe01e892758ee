"""The file of a step that was not taken: all that is needed to compute it again, as plain tensors and values."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlabeled import distributed
from unlabeled.core.moved_targets import with_current_targets
from unlabeled.core.writing import Unwritable, save_tensors
from unlabeled.distributed.fsdp import full_tensor
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Support
from unlabeled.training.faults.diagnosis import NonFiniteFinding

if TYPE_CHECKING:
    from unlabeled.training.pretraining import Pretraining


def write_record(path: Path, module: "Pretraining", batch: Batch, finding: NonFiniteFinding, keep: bool) -> None:
    """Write what one process saw of the step that comes next, whole or not at all.

    Every process must come here, since weights may be cut over all of them. Readable by
    ``torch.load(weights_only=True)``; steps within are counted from 0 as in every key, the file's name from 1 as in
    ``metrics.jsonl``.

    Args:
        path: of the file; its folder is made.
        module: with the state before the step.
        batch: of this process, without views.
        finding: what was bad.
        keep: whether this process writes.
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
        "state_dict": state,
        "named": str(finding),
    }
    try:
        save_tensors(path, record)
    except Unwritable as error:  # the step is not taken all the same, and the run goes on
        print(f"warning: {error}; this step cannot be replayed")


def read_record(path: str) -> dict[str, Any]:
    """What :func:`write_record` wrote. Raises UserError for any other file."""
    if not Path(path).is_file():
        raise UserError(f"replay={path}: no such file; a run writes them to its folder faults/")
    try:
        record: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind, as the file may be anything
        raise UserError(f"replay={path}: cannot be read as tensors and plain values") from error
    if not isinstance(record, dict) or not {"key", "batch", "named"} <= record.keys():
        raise UserError(f"replay={path}: holds no step; give a file of a run's folder faults/")
    return {**record, "config": with_current_targets(record.get("config"))}


def without_views(images: Batch | Support) -> dict[str, Any]:
    """Images, ids, labels or slots, and sizes: what was decoded, without views."""
    return {name: value.cpu() for name, value in images._asdict().items() if isinstance(value, torch.Tensor)}

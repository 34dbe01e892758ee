"""Finds the runs and checkpoints that a command names; imports no torch, so that a mistake is answered at once."""

import difflib
from itertools import islice
from pathlib import Path

from unlabeled.errors import UserError

NEWEST = Path("checkpoints") / "last.ckpt"  # below the folder of a run
RUNS = Path("outputs")  # where runs are unless run_dir says otherwise
PARTS = (
    "checkpoints",
    "config.yaml",
    "metrics.jsonl",
    "report",
    "results.json",
)  # each run or report has one
LOOKED_AT = 10_000  # neighbours of a folder that is not there


def checkpoint_path(run: str | None, checkpoint: str | None) -> Path:
    """Returns the file that a command names: a run's last state, or a checkpoint.

    Raises:
        UserError: both or none are given, or there is no such file.
    """
    if (run is None) == (checkpoint is None):
        raise UserError("give either run=outputs/NAME or checkpoint=FILE")
    if checkpoint is not None:
        return checkpoint_file("checkpoint", checkpoint)
    path = run_folder("run", str(run)) / NEWEST
    if not path.exists():
        raise UserError(f"run={run}: there is no {NEWEST} in it; give the folder of a run that has saved a state")
    return path


def folder_of(checkpoint: Path) -> Path:
    """Returns the folder of the checkpoint's run, or for a checkpoint from elsewhere the folder that it lies in."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def check_one_named(run: str | None, checkpoint: str | None, weights: str | None) -> None:
    """Raises UserError where several or none of the three are given."""
    if sum(each is not None for each in (run, checkpoint, weights)) != 1:
        raise UserError("give one of run=outputs/NAME, checkpoint=FILE and weights=… (a file, timm:NAME, …)")


def checkpoint_file(key: str, given: str) -> Path:
    """Returns a file that is there. Raises UserError, which begins with the key, for anything else."""
    path = Path(given).expanduser()
    if path.is_dir():
        raise UserError(f"{key}={given}: is a folder; give run={given}, or a file")
    if not path.is_file():
        raise UserError(f"{key}={given}: no such file")
    return path


def run_folder(key: str, given: str) -> Path:
    """Returns a folder that is there. Raises UserError, which names a run with a similar name."""
    path = Path(given).expanduser()
    if path.is_file():
        raise UserError(f"{key}={given}: is a file; give the folder of a run, or checkpoint={given}")
    if not path.is_dir() and path.name == "finetuned" and (path.parent / NEWEST).is_file():
        raise UserError(f"{key}={given}: no such folder; unlabeled finetune run={path.parent} makes it")
    if not path.is_dir():
        raise UserError(f"{key}={given}: no such folder{similar_runs(path)}")
    return path


def similar_runs(path: Path) -> str:
    """Returns which run may be meant by a folder that is not there, as the end of a sentence; "" if none is similar."""
    places = [folder for folder in dict.fromkeys([path.parent, RUNS]) if folder.is_dir()]
    beside = (each for folder in places for each in islice(folder.iterdir(), LOOKED_AT))
    known = {each.name: each for each in beside if any((each / part).exists() for part in PARTS)}
    close = difflib.get_close_matches(path.name, known, n=1, cutoff=0.5)
    return f"; did you mean {known[close[0]]}?" if close else ""


def why_not_evaluated(folder: Path) -> str | None:
    """Returns why a folder of a run or of a report has no results; None if it has."""
    if (folder / "results.json").exists() or (folder / "report" / "results.json").exists():
        return None
    if not folder.exists():
        return f"no such folder{similar_runs(folder)}"
    if (folder / NEWEST).exists():
        return f"not evaluated yet; unlabeled evaluate run={folder} writes its report"
    return "no report and no checkpoint: the run has not come to one"

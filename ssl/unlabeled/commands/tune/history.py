"""What was tried, a line of JSON each: the search goes on from it, whatever the version of Optuna."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_utf8
from unlabeled.core.writing import write_atomic
from unlabeled.errors import UserError

State = Literal["ended", "pruned", "failed"]
STATES = ("ended", "pruned", "failed")


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Args:
        number: from 0.
        values: of the keys that are searched.
        state: trained to its end, ended early, or failed.
        scores: top-1 of the online k-NN in per cent, by epoch.
        seconds: that it took.
        reason: why it failed.
    """

    number: int
    values: dict[str, Any]
    state: State
    scores: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""

    @property
    def score(self) -> float | None:
        """The last measured accuracy; None where there is none."""
        return self.scores[max(self.scores)] if self.scores else None


def read_trials(path: Path) -> list[Trial]:
    """Returns the trials of a file, by their numbers; a last line without an end was not written whole, and is none.

    Raises:
        UserError: the file cannot be read, or a line is no trial.
    """
    try:
        lines = _whole_lines(path).splitlines()
        return sorted((_trial(parse_json(line)) for line in lines), key=lambda trial: trial.number)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged ({error}); move the folder away to begin the search anew") from error


def add_trial(path: Path, trial: Trial) -> None:
    write_atomic(path, f"{_whole_lines(path)}{json.dumps(asdict(trial))}\n")


def _whole_lines(path: Path) -> str:
    text = read_utf8(path) if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def _trial(line: Mapping[str, Any]) -> Trial:
    scores = {int(epoch): float(score) for epoch, score in line["scores"].items()}
    if line["state"] not in STATES:
        raise ValueError(f"state {line['state']}")
    given = (int(line["number"]), dict(line["values"]), line["state"], scores)
    return Trial(*given, float(line["seconds"]), str(line["reason"]))


def best_trial(trials: list[Trial]) -> Trial | None:
    """Returns the best of those that were trained to their end; the earlier of equal ones."""
    ended = [trial for trial in trials if trial.state == "ended" and trial.score is not None]
    return max(ended, key=lambda trial: (trial.score, -trial.number), default=None)

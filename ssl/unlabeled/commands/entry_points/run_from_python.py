"""A trained run and the network in it, and what all calls from Python share."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlabeled.commands.arguments.asked import forgotten_afterwards
from unlabeled.commands.arguments.compose import composed, overrides_of
from unlabeled.commands.config import conf_folder, user_errors, with_joined_options
from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_utf8
from unlabeled.errors import UserError

if TYPE_CHECKING:
    from unlabeled.evaluation.reporting.results import Results
    from unlabeled.health.diagnosis import Finding
    from unlabeled.weights.pretrained import Pretrained

LOADED = ("run", "checkpoint", "weights", "backbone", "views")  # what decides a backbone


@dataclass(frozen=True)
class Run:
    """A run that has been trained to its end, in its folder."""

    folder: Path
    results: "Results | None"  # None: no probe, or no labelled test images

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What ``metrics.jsonl`` holds: a dict a line, with ``step``, ``epoch`` and values by name."""
        return [parse_json(line) for line in read_utf8(self.folder / "metrics.jsonl").splitlines()]

    @property
    def findings(self) -> "list[Finding]":
        """What is unhealthy, most serious first; ``finding.sentence`` says it."""
        from unlabeled.health.folder import diagnose_run

        return diagnose_run(self.folder).findings

    @property
    def report(self) -> Path | None:
        """The page; None where nothing was evaluated and none was made of the images."""
        page = self.folder / "report" / "report.html"
        return self.results.report if self.results is not None else page if page.is_file() else None

    @cached_property
    def backbone(self) -> "Pretrained":
        """The trained backbone, as :func:`load` gives it."""
        return load(self.folder)


Weights = str | os.PathLike[str] | Run


def load(run: Weights, *, overrides: Sequence[str] = (), **keys: Any) -> "Pretrained":
    """A backbone with its weights, in eval mode: an ``nn.Module`` with ``transform``, ``num_features``, ``image_size``.

    Args:
        run: its folder, a file of weights, of this project or official, or ``"timm:NAME"``,
            ``"torchvision:NAME[:WEIGHTS]"`` or ``"hf:ORG/NAME"``.
        overrides, keys: ``backbone=…`` and ``views=…`` for files that do not say what they are.

    Raises:
        UserError: not every tensor finds its place, or the file does not say what it is.
    """
    given = overrides_of(source_of(run) | keys) + with_joined_options(overrides)
    config = composed("embed", given)
    refuse_all_but(given, LOADED)
    with as_found(), user_errors(conf_folder(), "embed", given):
        from unlabeled.commands.build.embedding import build_pretrained
        from unlabeled.weights.starting.named import read_named

        return build_pretrained(config, read_named(config.run, config.checkpoint, config.weights))


def path_of(run: Any) -> str:
    if not isinstance(run, str | os.PathLike | Run):
        raise UserError(f"{run!r:.80}: give the folder of a run, a file of weights, or what unlabeled.train returned")
    return os.fspath(run.folder if isinstance(run, Run) else run)


def kind_of(run: Any) -> str:
    return "checkpoint" if os.path.isfile(Path(path_of(run)).expanduser()) else "run"


def source_of(run: Any) -> dict[str, str]:
    """The key that names what a backbone is loaded from."""
    in_library = ":" in path_of(run) and not os.path.exists(Path(path_of(run)).expanduser())
    return {"weights" if in_library else kind_of(run): path_of(run)}


def refuse_all_but(overrides: Sequence[str], keys: Sequence[str]) -> None:
    for each in overrides:
        key = each.lstrip("+~").split("=")[0]
        if not each.startswith("--") and key.split(".")[0].split("@")[0] not in keys:
            raise UserError(f"{key}: decides nothing of a backbone that is loaded; allowed: {', '.join(keys)}")


def refuse(overrides: Sequence[str], elsewhere: dict[str, str]) -> None:
    for key, command in elsewhere.items():
        if any(each.lstrip("+").split("=")[0] == key for each in overrides):
            raise UserError(f"{key}: gives nothing back to Python; call {command} in a shell")


def silent(line: str) -> None:
    """What is returned is not printed."""


@contextmanager
def as_found() -> Iterator[None]:
    """What a run sets for the whole process is put back: random states, a log level, filters of warnings."""
    import torch

    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings(), forgotten_afterwards():
            yield
    finally:
        lightning.setLevel(level)

"""Writes metrics to ``metrics.jsonl``, one object a line, and mirrors them to CSV, TensorBoard, Weights & Biases.

A resumed run repeats the steps that a killed session had logged after its last checkpoint. ``metrics.jsonl`` is
truncated to the checkpoint, the CSV table is written again from it, and TensorBoard is told to ignore later values.
Weights & Biases cannot delete values and loses those not yet written: it keeps both sessions' values and gets the last
part again.
"""

import csv
import io
import json
import os
import re
import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from unlabeled.core import phrases
from unlabeled.core.parsing import parse_json
from unlabeled.core.ranges import FilePath
from unlabeled.core.reading import open_regular, read_bytes, read_utf8
from unlabeled.core.writing import Unwritable, append_line, one_line, write_atomic
from unlabeled.errors import UserError
from unlabeled.objective import Progress

UNWRITTEN = 65536  # bytes of lines that a killed wandb may have lost: it writes its file in blocks of 32 KiB


def load_or_create_id(path: Path) -> str:
    """Returns a random name that stays the same when the run is started again: the first process keeps it in a file."""
    if not path.exists():
        _draw_id(path)
    if not path.exists():
        return ""
    return _kept_id(path)


def _kept_id(path: Path) -> str:
    try:
        kept = read_utf8(path).strip()
    except (OSError, ValueError):
        kept = ""
    if not re.fullmatch(r"[\w-]{1,200}", kept, re.ASCII):
        raise UserError(f"{path} is damaged: it holds no id of a run; remove it, and a new one begins there")
    return kept


@rank_zero_only
def _draw_id(path: Path) -> None:
    write_atomic(path, secrets.token_hex(8) + "\n")


class JsonLines(Logger):
    """Appends ``{"step": …, "epoch": …, name: value, …}`` for every set of metrics.

    Args:
        path: the file; its folder must exist. (Lightning's CSVLogger deletes its file when a run resumes.)
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        try:
            append_line(self.path, json.dumps({"step": step, **metrics}))
        except Unwritable as error:
            raise Unwritable(f"{error}; make room and give the same command again") from error

    def sync(self) -> int:
        """Waits until all lines are on the disk and returns the size of the file in bytes."""
        if not self.path.exists():
            return 0
        with open_regular(self.path) as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Keeps the first ``size`` bytes: the lines up to a saved state, without those of later steps."""
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < size:
            print(f"warning: {self.path} has {there:,} bytes and had {size:,} at the checkpoint: lines are lost")
        elif there > size:
            os.truncate(self.path, size)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in ``config.yaml`` beside the file."""


class Csv(Logger):
    """Writes ``metrics.jsonl`` as a table with a column for each name. A new name rewrites the table.

    The table is also rewritten at the start of a session, without the rows of steps that a killed session logged.

    Args:
        run_dir: contains ``metrics.jsonl``, whose logger gets each row first; ``metrics.csv`` is written there.
    """

    def __init__(self, run_dir: FilePath) -> None:
        super().__init__()
        self.lines, self.path = Path(run_dir) / "metrics.jsonl", Path(run_dir) / "metrics.csv"
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if not set(row) <= set(self.columns):
            self._write_again(row)
            return
        with one_line(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _write_again(self, row: dict[str, Any]) -> None:
        """Writes the table anew from ``metrics.jsonl``, whose last line is this row (or those values that every session
        has).
        """
        rows = _rows(read_bytes(self.lines)) if self.lines.exists() else []
        if rows and all(name in row and json.dumps(row[name]) == json.dumps(value) for name, value in rows[-1].items()):
            rows.pop()
        rows.append(row)
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing, as for ``metrics.jsonl``."""


class TensorBoard(TensorBoardLogger):
    """Logs to ``run_dir/tensorboard``, one folder for a run, with one file for each session.

    Args:
        run_dir: of the run.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, run_dir: FilePath) -> None:
        _require("tensorboard", 'pip install -e ".[tensorboard]"')
        # without hp_metric, a metric that no other logger has
        super().__init__(run_dir, name="tensorboard", version="", default_hp_metric=False)

    @rank_zero_only
    def begin(self, step: int) -> None:
        """Starts a session after ``step`` steps (0: a new run).

        Values logged earlier for later steps no longer count.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

        first = step + 1 if step else 0  # a new run writes pictures before its first step
        restart = Event(step=first, session_log=SessionLog(status=SessionLog.START))
        self.experiment.file_writer.add_event(restart)


class _MayBeLost:
    """A logger of a service that may end before the run does: then it says so once, and the run goes on without it."""

    lost = False

    def _unless_lost(self, send: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            send()
        except Exception as error:  # every service raises its own errors
            self.lost = True
            name, reason = type(self).__name__, f"{type(error).__name__}: {phrases.one_line(error)}"
            print(f"warning: {name} does not answer any more ({reason}): the run goes on, metrics.jsonl has everything")


class WeightsAndBiases(_MayBeLost, WandbLogger):
    """Logs all sessions to one run: its id is in ``run_dir/wandb_run_id``, its files in ``run_dir/wandb``.

    wandb numbers the rows itself, as it drops rows that are out of order; plots use the metric ``trainer/global_step``.
    So nothing is dropped, and steps that were repeated or sent again after a kill may appear twice, the later time with
    the values of ``metrics.jsonl``. Offline, each session has a folder; ``wandb sync`` joins them by the id.

    Args:
        run_dir: of the run.
        project, name, entity, group, tags: as in ``wandb.init``.
        offline: use no account and no network; the same as ``WANDB_MODE=offline``.

    Raises:
        UserError: wandb is not installed; later, if it cannot reach its server or has no account.
    """

    def __init__(
        self,
        run_dir: FilePath,
        project: str,
        name: str,
        entity: str | None,
        group: str | None,
        tags: Sequence[str],
        offline: bool,
    ) -> None:
        _require("wandb", "pip install wandb")
        super().__init__(
            name,
            run_dir,
            id=load_or_create_id(Path(run_dir) / "wandb_run_id"),
            project=project,
            entity=entity,
            group=group,
            tags=list(tags),
            mode="offline" if offline else None,  # Lightning's offline=true would stay on for all later runs
        )
        self.lines, self.unfinished = Path(run_dir) / "metrics.jsonl", Path(run_dir) / "wandb" / "unfinished"
        self.ends_later = False  # True: scores follow after training

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Logs the configuration. It is the first call to wandb, so errors show before a step is taken."""
        import wandb

        try:
            super().log_hyperparams(params)
        except wandb.errors.Error as error:
            raise UserError(
                f"logger.wandb: {error}; run `wandb login`, or give logger.wandb.offline=true and upload later"
            ) from error

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unless_lost(lambda: super(WeightsAndBiases, self).log_metrics(metrics, step))

    def log_image(self, key: str, images: list[Any], step: int | None = None, **more: Any) -> None:
        self._unless_lost(lambda: super(WeightsAndBiases, self).log_image(key, images, step, **more))

    @rank_zero_only
    def begin(self, step: int) -> None:
        """Starts a session after ``step`` steps; sends again what a killed session may have lost."""
        if step and self.unfinished.exists():
            for row in _rows(read_bytes(self.lines)[-UNWRITTEN:]):
                self.log_metrics(row, row.pop("step"))
        self.unfinished.parent.mkdir(exist_ok=True)  # WANDB_MODE=disabled makes no folder
        self.unfinished.touch()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the session, or the next run of this process (in a sweep) would log into this one."""
        session = self._experiment
        if session is not None and not (self.ends_later and status == "success"):
            self._unless_lost(lambda: session.finish(exit_code=0 if status == "success" else 1))
            if not self.lost:  # else the next session sends again what this one could not
                self.unfinished.unlink(missing_ok=True)


class MLflow(_MayBeLost, MLFlowLogger):
    """Logs all sessions to one run, whose id is in ``run_dir/mlflow_run_id``.

    Args:
        run_dir: of the run.
        experiment: name under which MLflow groups runs.
        name: of the run.
        tracking_uri: a server, or ``file:FOLDER``.

    Raises:
        UserError: mlflow is not installed; later, if it cannot reach its server.
    """

    def __init__(self, run_dir: str, experiment: str, name: str, tracking_uri: str) -> None:
        _require("mlflow", "pip install 'unlabeled[mlflow]'", "mlflow-skinny")
        if tracking_uri.startswith("file:"):  # since version 3.5, file stores must be allowed
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.id_file, self.tracking_uri = Path(run_dir) / "mlflow_run_id", tracking_uri
        known = _kept_id(self.id_file) if self.id_file.exists() else None
        super().__init__(experiment, name, tracking_uri, run_id=known)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Logs the configuration. It is the first call to MLflow, so errors show before a step is taken."""
        import mlflow

        try:
            super().log_hyperparams(params)
        except mlflow.exceptions.MlflowException as error:
            if not self.id_file.exists():
                raise UserError(f"logger.mlflow.tracking_uri={self.tracking_uri}: {error}") from error
            print("MLflow keeps the values that the run was started with; config.yaml has those of this session")
        if self.run_id is not None:
            write_atomic(self.id_file, f"{self.run_id}\n")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unless_lost(lambda: super(MLflow, self).log_metrics(metrics, step))

    def finalize(self, status: str = "success") -> None:
        self._unless_lost(lambda: super(MLflow, self).finalize(status))


def wait_for_scores(loggers: Sequence[Logger]) -> None:
    """Keeps sessions open after training until :func:`log_end`, for a run that will be evaluated."""
    for logger in loggers:
        if isinstance(logger, WeightsAndBiases):
            logger.ends_later = True


def log_end(loggers: Sequence[Logger], scores: Mapping[str, float], speed: Mapping[str, float], at: Progress) -> None:
    """Logs the results of a run to every logger; ``metrics.jsonl`` gets no speed, which differs between sessions.

    Args:
        loggers: of the run.
        scores: by name; none if nothing was evaluated.
        speed: by name.
        at: the end of the run.
    """
    for logger in loggers:
        values = {**scores} if isinstance(logger, JsonLines) else {**scores, **speed}
        if values:
            logger.log_metrics({"epoch": at.epoch, **values}, at.step)
        if isinstance(logger, WeightsAndBiases):
            logger.ends_later = False
        logger.finalize("success")


def _rows(lines: bytes) -> list[dict[str, Any]]:
    """Returns the records of ``metrics.jsonl`` without truncated or damaged ones."""
    rows = []
    for line in lines.splitlines():
        with suppress(ValueError):
            row = parse_json(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def _require(package: str, remedy: str, *or_else: str) -> None:
    for name in or_else:
        with suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            return
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise UserError(f"logger={package}: {package} is not installed: {remedy}, or choose another logger") from error

"""The table, TensorBoard and Weights & Biases hold what metrics.jsonl holds, after a kill too, and need no network."""

import csv
import json
import os
import signal
import struct
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
from hydra.errors import InstantiationException
from pytorch_lightning.loggers.logger import Logger

from tests.processes import start
from tests.small import composed, small_run
from unlabeled.commands.build.trainer import build_loggers
from unlabeled.errors import UserError
from unlabeled.training.loggers import Csv, JsonLines, TensorBoard, WeightsAndBiases, _MayBeLost

ALL = ["csv", "tensorboard", "wandb"]
Values = dict[tuple[str, int], float]  # by name and step


class Killed(pl.Callback):
    """``kill -9`` when a step is done and its metrics and pictures are written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed before its first checkpoint, killed after its second, and started again until its end."""
    run_dir = tmp_path_factory.mktemp("runs") / "killed"
    short = ["data=digits", "data.image_size=8", "num_workers=0", "max_steps=14", "checkpoint_every_n_steps=4"]
    chosen = [f"logger=[{','.join(ALL)}]", "logger.wandb.offline=true", "batch_size=500"]  # an epoch has 2 steps
    config = small_run("swav", run_dir, *short, *chosen, "objective.queue_length=0")
    config.pictures = {"_target_": "unlabeled.training.pictures.Pictures", "every_n_epochs": 1, "images": 2, "pool": 30}
    assert [start(config, Killed(step)).code for step in (3, 11)] == [-signal.SIGKILL] * 2
    ended = start(config)
    assert ended.code == 0, ended.output
    return run_dir


def jsonl(run_dir: Path) -> Values:
    found: Values = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found |= {(name, row["step"]): value for name, value in row.items() if name != "step"}
    return found


def pictures(run_dir: Path) -> set[tuple[str, int]]:
    stems = [path.stem.partition("-step-") for path in (run_dir / "pictures").iterdir()]
    return {(f"pictures/{name}", int(step)) for name, _, step in stems}


def test_the_table_has_each_value_of_metrics_jsonl_once(killed: Path) -> None:
    with (killed / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, *range(1, 15)]  # the monitor looks at the first step as well
    found = {(name, int(row["step"])): value for row in rows for name, value in row.items() if name != "step" and value}
    assert {key: float(value) for key, value in found.items()} == jsonl(killed)


def test_tensorboard_has_each_value_of_metrics_jsonl_and_each_picture_once(killed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    assert len(list((killed / "tensorboard").glob("events*"))) == 3  # a session each
    events = EventAccumulator(str(killed / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    found = [((name, event.step), event.value) for name in tags["scalars"] for event in events.Scalars(name)]
    assert len(found) == len(dict(found)) + 1  # the epoch of the first step stands beside both sets of its values
    assert dict(found) == {key: float(np.float32(value)) for key, value in jsonl(killed).items()}
    seen = [(name, event.step) for name in tags["images"] for event in events.Images(name)]
    assert len(seen) == len(set(seen))
    assert set(seen) == pictures(killed)
    assert {name for name, _ in seen} == {"pictures/views", "pictures/feature_map", "pictures/prototypes"}


def records(path: Path) -> Iterator[Any]:
    """What wandb wrote: a header of 7 bytes, blocks of 32 KiB, in them pieces with checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2 as proto

    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield cast(Any, proto).Record.FromString(record)
            record = b""


def test_weights_and_biases_has_one_run_with_each_value_of_metrics_jsonl_though_a_kill_takes_its_last_block(
    killed: Path,
) -> None:
    files = sorted((killed / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.stat().st_size for path in files[:2]] == [7, 7]  # no record of the killed sessions
    last = list(records(files[2]))
    ids = {record.run.run_id for record in last if record.HasField("run")}
    assert ids == {(killed / "wandb_run_id").read_text().strip()}
    found, seen = cast(Values, {}), set()
    for record in (record for record in last if record.HasField("history")):
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = row.pop("trainer/global_step")
        seen |= {("/".join(name.split("/")[:2]), step) for name in row if name.startswith("pictures/")}
        found |= {(name, step): value for name, value in row.items() if not name.startswith(("_", "pictures/"))}
    assert found == jsonl(killed)
    assert seen == {(name, step) for name, step in pictures(killed) if step > 10}  # earlier ones are not told again
    assert not (killed / "wandb" / "unfinished").exists()


def test_a_name_that_comes_late_is_a_column_of_the_table_all_the_same(tmp_path: Path) -> None:
    lines, table = JsonLines(tmp_path / "metrics.jsonl"), Csv(str(tmp_path))
    for step, row in enumerate(({"a": 0.1}, {"a": 0.2, "b": 3.0}, {"b": 4.0}), 1):
        for logger in (lines, table):
            logger.log_metrics(row, step)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a,b", "1,0.1,", "2,0.2,3.0", "3,,4.0"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_one_line_and_none_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def missing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    assert len(build_loggers(composed("logger=csv", f"run_dir={tmp_path}"))) == 1
    assert build_loggers(composed(f"run_dir={tmp_path}")) == []
    with pytest.raises(InstantiationException) as refused:
        build_loggers(composed(f"logger={name}", f"run_dir={tmp_path}"))
    cause = refused.value.__cause__
    assert isinstance(cause, UserError)
    assert str(cause).startswith(f"logger={name}: {name} is not installed: pip install")


def test_no_account_at_weights_and_biases_is_one_line_before_a_step_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    (logger,) = build_loggers(composed("logger=wandb", f"run_dir={tmp_path}"))
    with pytest.raises(UserError, match=r"No API key configured; run `wandb login`, or give logger.wandb.offline=true"):
        logger.log_hyperparams({})


def test_what_is_no_logger_is_refused_by_its_name(tmp_path: Path) -> None:
    config = composed("logger=csv", "+logger.csw=1", f"run_dir={tmp_path}")
    with pytest.raises(UserError, match=r"logger\.csw: no such logger; give logger=csv, tensorboard or wandb"):
        build_loggers(config)


def test_tensorboard_is_written_by_the_first_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TensorBoard(str(tmp_path))
    logger.begin(3)
    logger.save()
    assert not (tmp_path / "tensorboard").exists()


def test_a_loss_that_is_no_number_is_one_row_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    Csv(str(tmp_path)).log_metrics({"loss": float("nan")}, 1)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("gone", [ConnectionResetError("Connection lost"), RuntimeError("no server")])
def test_a_service_that_does_not_answer_any_more_ends_no_run(
    gone: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Service(Logger):
        name = version = None

        def log_hyperparams(self, *given: Any) -> None: ...

        def log_metrics(self, *given: Any) -> None:
            raise gone

        finalize = log_metrics  # type: ignore[assignment]

    class Lost(_MayBeLost, Service):
        def log_metrics(self, *given: Any) -> None:
            self._unless_lost(lambda: super(Lost, self).log_metrics(*given))

        def finalize(self, status: str) -> None:
            self._unless_lost(lambda: super(Lost, self).finalize(status))

    logger = Lost()
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step)
    logger.finalize("failed")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"warning: Lost does not answer any more ({type(gone).__name__}: {gone}): the run goes on,"
        " metrics.jsonl has everything"
    ]


def test_weights_and_biases_whose_process_was_killed_ends_no_run_and_is_sent_the_rest_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    logger = WeightsAndBiases(str(tmp_path), "unlabeled", "x", None, None, [], offline=True)
    logger.unfinished.parent.mkdir()
    logger.unfinished.touch()

    class Gone:
        def finish(self, **given: Any) -> None:
            raise ConnectionResetError("Connection lost")

        log = finish

    monkeypatch.setattr(logger, "_experiment", Gone())
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.finalize("failed")
    assert logger.lost
    assert logger.unfinished.exists()
    assert capsys.readouterr().out.count("does not answer any more") == 1

"""Runs in processes of their own, which may be killed: forked off a server that has torch imported already."""

import multiprocessing
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from tests.forked import SERVER, write_to
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.training.checkpointing import Interrupted


class Ended(NamedTuple):
    """How a run came to its end: −9 if it was killed, 2 for a mistake, 128 + n for a signal; None if it never did."""

    code: int | None
    output: str


def start(config: DictConfig, meddling: pl.Callback | None = None, seconds: float = 60) -> Ended:
    """Do what ``train.py`` does with a configuration, and with a callback more that is called before all others."""
    output = Path(config.run_dir).with_suffix(".output")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    process = SERVER.Process(target=_live, args=(config, meddling, str(output)))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Ended(None, output.read_text())
    return Ended(process.exitcode, output.read_text())


def _live(config: DictConfig, meddling: pl.Callback | None, output: str) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of the run's own workers, as with train.py
    torch.set_num_threads(1)
    write_to(output, output)
    try:
        _train(config, meddling)
    except UserError as error:
        print(f"error: {error}")
        raise SystemExit(2) from None
    except Interrupted as stop:
        raise SystemExit(128 + stop.number) from None


def _train(config: DictConfig, meddling: pl.Callback | None) -> None:
    resolved = open_run(config)
    run = build_run(config, resolved)
    if meddling is not None:
        run.trainer.callbacks.insert(0, meddling)  # type: ignore[attr-defined]
    run.fit(resolved)

"""Checkpoints are whole or not there; signals, full disks and damage cost the steps since the last one and no more."""

import os
import random
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from tests.processes import start
from tests.small import small_run
from unlabeled.commands.build.trainer import build_loggers
from unlabeled.errors import UserError
from unlabeled.training.checkpointing import Checkpointing, requeue
from unlabeled.training.checkpoints import STATE, CheckpointFolder
from unlabeled.training.loggers import JsonLines


def write(folder: CheckpointFolder, step: int, before: int | None) -> None:
    state = {"step": step, "x": torch.arange(50_000), **dict.fromkeys(STATE)}
    folder.write(lambda path: torch.save(state, path), before, first=True)


def step_of(path: Path | None) -> int:
    assert path is not None
    return int(torch.load(path, weights_only=True)["step"])


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_newest_states_stay_and_the_newest_is_called_last(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    assert folder.find() is None
    for step in range(10, 60, 10):
        write(folder, step, step - 10 if step > 10 else None)
        assert step_of(folder.find()) == step
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "last.ckpt",
        "step_000000030.ckpt",
        "step_000000040.ckpt",
    ]
    assert step_of(folder.folder / "step_000000040.ckpt") == 40


@pytest.mark.parametrize("keep", [1, 2])
def test_at_no_moment_of_writing_is_there_no_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    folder, found = CheckpointFolder(tmp_path, keep), []

    def watched(name: str) -> None:
        call = getattr(os, name)

        def before_and_after(*given: Any, **more: Any) -> Any:
            found.append(step_of(folder.find()))
            made = call(*given, **more)
            found.append(step_of(folder.find()))
            return made

        monkeypatch.setattr(os, name, before_and_after)

    write(folder, 1, None)
    for name in ("link", "replace", "fsync"):
        watched(name)
    write(folder, 2, 1)
    assert sorted(set(found)) == [1, 2]
    assert found == sorted(found)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other", "zip", "weights"])
def test_a_damaged_newest_state_is_set_aside_with_a_warning_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    write(folder, 1, None)
    write(folder, 2, 1)
    content = folder.newest.read_bytes()
    if damage == "flipped":
        flip(folder.newest, len(content) // 2)
        torch.load(folder.newest, weights_only=True)  # torch itself does not notice
    elif damage == "zip":
        with zipfile.ZipFile(folder.newest, "w") as file:
            file.writestr("paper.pdf", "of another kind")
    elif damage == "weights":
        torch.save({"fc.weight": torch.zeros(1)}, folder.newest)
    else:
        folder.newest.write_bytes({"cut": content[:-100], "empty": b"", "other": b"not a checkpoint"}[damage])
    assert step_of(folder.find()) == 1
    assert "last.ckpt is damaged" in capsys.readouterr().out
    assert (tmp_path / "last.ckpt.damaged").exists()
    write(folder, 3, None)  # and the damaged one does not take the place of a whole one
    assert step_of(folder.find()) == 3
    assert step_of(tmp_path / "step_000000001.ckpt") == 1


def test_where_all_are_damaged_the_run_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    write(folder, 1, None)
    write(folder, 2, 1)
    for path in list(tmp_path.iterdir()):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every checkpoint is damaged, last\.ckpt, step_000000001\.ckpt; .* name=…"):
        folder.find()
    with pytest.raises(UserError, match=r"every checkpoint is damaged, last\.ckpt, step_"):  # nothing begins anew
        folder.find()
    with pytest.raises(UserError, match="checkpoints_kept=0"):
        CheckpointFolder(tmp_path, 0)


def test_a_state_that_cannot_be_written_leaves_what_was_there_and_no_partial_file(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    write(folder, 1, None)

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        folder.write(fails, 1, first=True)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert step_of(folder.find()) == 1


def test_metrics_are_cut_to_what_they_were_and_a_loss_of_lines_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    assert metrics.sync() == 0
    metrics.log_metrics({"loss": 1.0}, 1)
    size = metrics.sync()
    metrics.log_metrics({"loss": 2.0}, 2)
    metrics.truncate(size)
    assert metrics.path.read_text() == '{"step": 1, "loss": 1.0}\n'
    metrics.truncate(size + 5)
    assert "lines are lost" in capsys.readouterr().out
    assert metrics.sync() == size


class SignalAt(pl.Callback):
    """Sends this very process a signal in the middle of a step, or while a checkpoint is written."""

    def __init__(self, number: int, step: int, while_writing: bool = False) -> None:
        self.number, self.step, self.while_writing = number, step, while_writing

    def on_before_zero_grad(self, trainer: pl.Trainer, *others: Any) -> None:
        if not self.while_writing and trainer.global_step == self.step:
            os.killpg(0, self.number)  # as a terminal or a cluster: workers get it too

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        os.setpgrp()

    def on_save_checkpoint(self, trainer: pl.Trainer, *others: Any) -> None:
        if self.while_writing and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder, draw = tmp_path_factory.mktemp("images"), random.Random(0)
    for number in range(48):
        place = folder / "train" / "ab"[number % 2] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (10, 10), draw.randbytes(300)).save(place)
    return folder


def config_of(images: Path, run_dir: Path, *overrides: str) -> DictConfig:
    data = ["data=folder", f"data.path={images}", "data.image_size=10", "max_steps=12", "max_epochs=null"]
    return small_run("simclr", run_dir, *data, "checkpoint_every_n_epochs=100", *overrides)


def state(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return found


def same_end(one: Path, other: Path) -> bool:
    ours, theirs = state(one)["state_dict"], state(other)["state_dict"]
    return (
        all(torch.equal(ours[name], value) for name, value in theirs.items())
        and (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    )


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    assert start(config_of(images, run_dir)).code == 0
    return run_dir


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_all_processes_lets_the_step_finish_and_the_same_command_goes_on(
    images: Path, straight: Path, tmp_path: Path, number: int, workers: int
) -> None:
    config = config_of(images, tmp_path / "run", f"num_workers={workers}", f"memory_gib={0 if workers else 1}")
    ended = start(config, SignalAt(number, 5))
    assert ended.code == 128 + number, ended.output
    assert f"{signal.Signals(number).name}: finishing this step and writing a checkpoint" in ended.output
    assert state(tmp_path / "run")["global_step"] == 6
    assert start(config).code == 0
    assert same_end(tmp_path / "run", straight)


def test_sigterm_while_a_checkpoint_is_written_waits_for_it_and_stops_then(
    images: Path, straight: Path, tmp_path: Path
) -> None:
    config = config_of(images, tmp_path / "run", "checkpoint_every_n_steps=4")
    ended = start(config, SignalAt(signal.SIGTERM, 4, while_writing=True))
    assert ended.code == 128 + signal.SIGTERM, ended.output
    assert state(tmp_path / "run")["global_step"] == 4
    assert start(config).code == 0
    assert same_end(tmp_path / "run", straight)


class KillWorker(pl.Callback):
    """``kill -9`` of a process that decodes images, as the kernel does when memory is short."""

    def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        if trainer.global_step == 6:
            me = os.getpid()
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)


def test_a_killed_worker_ends_the_run_with_a_reason_and_it_goes_on_from_its_checkpoint(
    images: Path, straight: Path, tmp_path: Path
) -> None:
    config = config_of(images, tmp_path / "run", "num_workers=2", "memory_gib=0", "checkpoint_every_n_steps=5")
    ended = start(config, KillWorker())
    assert ended.code not in (0, None), ended.output
    assert "worker" in ended.output
    assert state(tmp_path / "run")["global_step"] in (5, 10)
    assert start(config).code == 0
    assert same_end(tmp_path / "run", straight)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs takes a privileged user")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_the_run_in_one_line_and_after_making_room_it_goes_on(
    images: Path, straight: Path, small_disk: Path
) -> None:
    config = config_of(images, small_disk / "run", "checkpoint_every_n_steps=3", "checkpoints_kept=1")
    size = (straight / "checkpoints" / "last.ckpt").stat().st_size
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(4 * 2**20 - size * 3 // 2))
    ended = start(config)
    assert ended.code == 2, ended.output
    assert "the state of step 6 cannot be written" in ended.output
    assert "that of step 3 is whole; make room and give the same command again" in ended.output
    assert state(small_disk / "run")["global_step"] == 3
    ballast.unlink()
    assert start(config).code == 0
    assert same_end(small_disk / "run", straight)


def test_a_run_goes_on_from_the_state_before_when_the_newest_is_damaged(
    images: Path, straight: Path, tmp_path: Path
) -> None:
    config = config_of(images, tmp_path / "run", "checkpoint_every_n_steps=4")
    assert start(config, SignalAt(signal.SIGTERM, 9)).code == 128 + signal.SIGTERM
    newest = tmp_path / "run" / "checkpoints" / "last.ckpt"
    flip(newest, newest.stat().st_size // 2)
    ended = start(config)
    assert ended.code == 0, ended.output
    assert "last.ckpt is damaged" in ended.output
    assert same_end(tmp_path / "run", straight)


def test_another_value_is_refused_with_all_keys_that_differ_and_taken_with_resume_override(
    images: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert start(config_of(images, run_dir, "max_steps=4")).code == 0
    other = ["optimizer.lr=0.5", "objective.temperature=0.3", "max_steps=6", "num_workers=1"]
    refused = start(config_of(images, run_dir, *other))
    assert refused.code == 2
    assert (
        "another max_steps, objective.temperature, optimizer.lr; give another name=…, or resume=override"
        in refused.output
    )
    assert state(run_dir)["global_step"] == 4
    assert start(config_of(images, run_dir, *other, "resume=override")).code == 0
    assert state(run_dir)["global_step"] == 6
    written = OmegaConf.load(run_dir / "config.yaml")
    assert (written.optimizer.lr, written.objective.temperature) == (0.5, 0.3)


def test_by_the_clock_a_state_is_written_after_so_many_minutes(images: Path, tmp_path: Path) -> None:
    config = config_of(images, tmp_path / "run", "checkpoint_every_n_minutes=0.00001", "checkpoints_kept=20")
    assert start(config).code == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["last.ckpt", *(f"step_{step:09d}.ckpt" for step in range(1, 12))]


def test_a_run_that_goes_on_keeps_its_id_at_weights_and_biases_and_another_run_has_another(
    images: Path, tmp_path: Path
) -> None:
    loggers = ["logger=wandb", "logger.wandb.offline=true"]
    ids = [build_loggers(config_of(images, tmp_path / name, *loggers))[0].version for name in ("one", "one", "two")]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0] == (tmp_path / "one" / "wandb_run_id").read_text().strip()


def test_slurm_is_asked_to_start_the_job_again_after_sigusr1_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert requeue(signal.SIGUSR1) is None  # no Slurm
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert requeue(signal.SIGTERM) is None
    assert requeue(signal.SIGUSR1) == "job 77 is requeued"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue(signal.SIGUSR1) == "job 70_3 is requeued"
    assert (tmp_path / "asked").read_text() == "requeue 77\nrequeue 70_3\n"
    scontrol.write_text("#!/bin/sh\necho not allowed >&2; exit 1\n")
    assert requeue(signal.SIGUSR1) == "job 70_3 could not be requeued (not allowed); submit it again"


def test_a_bit_in_the_list_of_files_is_damage_like_any_other(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    write(folder, 1, None)
    write(folder, 2, 1)
    content = bytearray(folder.newest.read_bytes())
    place = content.rfind(b"/data.pkl")
    content[place + 1] = 0xFF  # no letter of any text
    content[content.rfind(b"PK\x01\x02", 0, place) + 9] |= 0x08  # names are UTF-8
    folder.newest.write_bytes(content)
    assert step_of(folder.find()) == 1


def test_a_sigterm_after_a_sigusr1_still_puts_the_job_in_the_queue_again(tmp_path: Path) -> None:
    callback = Checkpointing(CheckpointFolder(tmp_path, 1), JsonLines(tmp_path / "metrics.jsonl"), 1, None, None)
    for given, kept in (
        ([signal.SIGUSR1, signal.SIGTERM], signal.SIGUSR1),
        ([signal.SIGTERM, signal.SIGUSR1], signal.SIGUSR1),
        ([signal.SIGINT, signal.SIGTERM], signal.SIGTERM),
    ):
        callback._signal, callback._asked_by_hand = 0, False
        for number in given:
            callback._remember(number, None)
        assert callback._signal == kept
    with pytest.raises(KeyboardInterrupt):
        callback._remember(signal.SIGINT, None)

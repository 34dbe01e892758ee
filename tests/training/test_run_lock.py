"""Two processes never train one run; a run that was killed, moved or requeued goes on at once, or after a minute."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.processes import start
from tests.small import small_run
from unlabeled.errors import UserError
from unlabeled.training import run_lock
from unlabeled.training.run_lock import Held, Owner, RunLock

REFUSED = r"^run_dir=.*: process \d+ on .* is at work on this run; wait for its end, or give another name=…; if it is"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(run_lock, "BEAT", 0.05)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.4)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield
    for held in list(run_lock._held.values()):
        held.release()


def someone(folder: Path, **other: Any) -> Owner:
    """A process of this machine that lives: the one that started this one."""
    start = run_lock._start_of(os.getppid())
    assert start
    return replace(run_lock._this_process(folder), pid=os.getppid(), started=start, **other)


def leave(run_dir: Path, owner: Owner) -> Path:
    (run_dir / "lock").write_text(json.dumps(asdict(owner)))
    return run_dir / "lock"


def owner_of(run_dir: Path) -> int:
    return int(json.loads((run_dir / "lock").read_text())["pid"])


def test_a_lock_lasts_from_its_making_to_its_release(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "new")
    assert owner_of(tmp_path / "new") == os.getpid()
    lock.release()
    lock.release()
    assert not (tmp_path / "new").exists()  # made for the lock, and nothing was written to it


def test_a_folder_that_was_there_stays_when_its_lock_is_released(tmp_path: Path) -> None:
    RunLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_lives_on_this_machine_keeps_its_run_to_itself(tmp_path: Path) -> None:
    leave(tmp_path, someone(tmp_path))
    began = time.monotonic()
    with pytest.raises(UserError, match=REFUSED):
        RunLock(tmp_path)
    assert time.monotonic() - began < 0.3
    assert owner_of(tmp_path) == os.getppid()


@pytest.mark.parametrize("spelling", ["link", "link to a link", "dots", "relative"])
def test_a_run_is_one_run_however_its_folder_is_called(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("runs/a")
    (tmp_path / "second").symlink_to("link")
    leave(tmp_path / "runs" / "a", someone(tmp_path / "runs" / "a"))
    monkeypatch.chdir(tmp_path)
    called = {"link": tmp_path / "link", "link to a link": tmp_path / "second", "relative": Path("link")}
    with pytest.raises(UserError, match=REFUSED):
        RunLock(called.get(spelling, tmp_path / "runs" / ".." / "runs" / "a"))


def gone(tmp_path: Path) -> Owner:
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    assert child.pid is not None
    return replace(someone(tmp_path), pid=child.pid)


LEFT: dict[str, Callable[[Path], Owner]] = {
    "its process was killed": gone,
    "its number is another process's now": lambda path: replace(someone(path), started="1"),
    "the job was requeued": lambda path: someone(path, job="77", restarts=1),
    "the job was requeued and is on another machine": lambda path: someone(path, job="77", restarts=1, machine="other"),
    "the folder is a copy": lambda path: replace(someone(path), folder=1),
}


@pytest.mark.parametrize("how", LEFT)
def test_a_lock_whose_owner_is_known_to_be_gone_is_broken_at_once(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE", 100.0)
    leave(tmp_path, LEFT[how](tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    RunLock(tmp_path)
    assert owner_of(tmp_path) == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


HOSTILE = json.dumps(dict.fromkeys((each.name for each in fields(Owner)), -1) | {"pid": 2**80})


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}', "\x00\x01", "[" * 100_000, HOSTILE])
def test_a_damaged_lock_is_broken(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(content)
    os.utime(tmp_path / "lock", (1e9, 1e9))
    RunLock(tmp_path)
    assert owner_of(tmp_path) == os.getpid()


def test_an_owner_on_another_machine_that_gives_signs_of_life_keeps_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, over = leave(tmp_path, someone(tmp_path, machine="other", host="node7", job="12")), threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            os.utime(lock)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=REFUSED):
            RunLock(tmp_path)
    finally:
        over.set()
        thread.join()
    said = capsys.readouterr().out
    assert f"{tmp_path} was in use by process {os.getppid()} on node7 (Slurm job 12): waiting up to 0 s" in said


def test_an_owner_on_another_machine_that_is_silent_loses_its_run(tmp_path: Path) -> None:
    leave(tmp_path, someone(tmp_path, machine="other"))
    began = time.monotonic()
    RunLock(tmp_path)
    assert time.monotonic() - began > 0.4
    assert owner_of(tmp_path) == os.getpid()


def test_a_lock_of_another_machine_that_is_old_is_broken_at_once(tmp_path: Path) -> None:
    os.utime(leave(tmp_path, someone(tmp_path, machine="other")), (1e9, 1e9))
    began = time.monotonic()
    RunLock(tmp_path)
    assert time.monotonic() - began < 0.3


def test_a_living_owner_touches_its_lock(tmp_path: Path) -> None:
    RunLock(tmp_path)
    os.utime(tmp_path / "lock", (1e9, 1e9))
    deadline = time.monotonic() + 20
    while (tmp_path / "lock").stat().st_mtime < 2e9 / 2 + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.time() - (tmp_path / "lock").stat().st_mtime < 20


def test_a_process_whose_run_was_taken_over_stops_and_leaves_the_others_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    Held(lock).on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    leave(tmp_path, someone(tmp_path, token="another"))
    deadline = time.monotonic() + 20
    while lock._taken_by is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(UserError, match=r"was taken over by process \d+ on .*; it stops and writes no more$"):
        Held(lock).on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    lock.release()
    assert owner_of(tmp_path) == os.getppid()


def contend(run_dir: str, barrier: Any, answers: Any, over: Any) -> None:
    barrier.wait()
    try:
        RunLock(Path(run_dir))
        answers.put("mine")
    except UserError as error:
        answers.put(str(error))
    over.wait()


@pytest.mark.parametrize("left", ["nothing", "a stale lock"])
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_several_that_come_at_once_one_gets_the_run(
    left: str, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*names: Any) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuses)
    if left == "a stale lock":
        leave(tmp_path, gone(tmp_path))
    fork = multiprocessing.get_context("fork")
    barrier, answers, over = fork.Barrier(4), fork.Queue(), fork.Event()
    children = [fork.Process(target=contend, args=(str(tmp_path), barrier, answers, over)) for _ in range(4)]
    for child in children:
        child.start()
    said = [answers.get(timeout=60) for _ in children]
    over.set()
    for child in children:
        child.join()
    assert said.count("mine") == 1
    assert all("is at work on this run" in each for each in said if each != "mine")


def test_a_second_command_on_a_run_is_refused_and_changes_no_file(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "data" / "class").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 12, 0, 0)).save(tmp_path / "data" / "class" / f"{number}.png")
    chosen = ["data=folder", f"data.path={tmp_path / 'data'}", "data.image_size=16", "max_epochs=null", "max_steps=1"]
    config = small_run("simclr", tmp_path / "run", *chosen, "num_workers=0")
    lock = RunLock(tmp_path / "run")
    refused = start(config)
    assert refused.code == 2, refused.output
    assert f"if it is certainly gone remove {lock.path}" in refused.output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    lock.release()
    assert start(config).code == 0


def test_a_run_that_is_under_way_in_another_thread_keeps_its_lock(tmp_path: Path) -> None:
    first = RunLock(tmp_path / "a")
    first.at_work = True
    with pytest.raises(UserError, match=r"run_dir=.*b: this process trains .*a already, in another thread"):
        RunLock(tmp_path / "b")
    assert owner_of(tmp_path / "a") == os.getpid()
    first.at_work = False
    RunLock(tmp_path / "b")
    assert not (tmp_path / "a" / "lock").exists()

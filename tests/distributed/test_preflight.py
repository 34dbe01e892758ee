"""Processes that cannot train together are told so by name, within seconds, before an image is read."""

import json
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from tests.small import composed
from unlabeled.commands.build.run import build_run
from unlabeled.commands.config import is_sweep
from unlabeled.distributed import preflight
from unlabeled.distributed.rendezvous import RendezvousInfo, open_store, wait_and_compare
from unlabeled.distributed.watchdog import end_children
from unlabeled.errors import UserError

HOST = socket.gethostname()
FACTS = {"config": {"optimizer": {"lr": 0.1}, "views": ["a", "b"]}, "torch": "2.15.0", "code": "12ab"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def outcomes(facts: dict[int, Any], processes: int, patience: float = 60) -> dict[int, Any]:
    """What becomes of each process that comes, each in a thread of this one: its hosts, or what it raises."""
    port = free_port()
    stores = []  # kept, as a run does: the first one serves all others

    def come(rank: int) -> Any:
        place = RendezvousInfo("127.0.0.1", port, rank, processes)
        stores.append(store := open_store(place, patience))
        try:
            return wait_and_compare(store, place, facts[rank], patience)
        except (UserError, SystemExit) as error:
            return error

    with ThreadPoolExecutor(processes) as pool:
        return dict(zip(facts, pool.map(come, facts), strict=True))


def test_equal_processes_meet_and_the_first_knows_the_host_of_each() -> None:
    assert outcomes({rank: FACTS for rank in range(4)}, 4) == {0: [HOST] * 4, 1: [], 2: [], 3: []}


def test_what_differs_is_named_with_both_values_the_processes_and_their_host() -> None:
    other = json.loads(json.dumps(FACTS))
    other["config"]["optimizer"]["lr"] = 0.2
    other["code"] = None
    found = outcomes({0: FACTS, 1: other, 2: FACTS, 3: other}, 4)
    assert str(found[0]) == (
        f"not as on process 0 on {HOST}: code is None and not 12ab on processes 1, 3 on {HOST};"
        f" optimizer.lr is 0.2 and not 0.1 on processes 1, 3 on {HOST}"
    )
    assert [found[rank].code for rank in (1, 2, 3)] == [2, 2, 2]


def test_who_is_missing_is_named_after_the_patience_given() -> None:
    started = time.monotonic()
    found = outcomes({0: FACTS, 2: FACTS}, 4, patience=1)
    assert time.monotonic() - started < 5
    there = f"there: processes 0, 2 on {HOST}"
    assert str(found[0]).startswith(f"processes 1, 3 of 4 missing after 1 s (preflight_seconds), {there}; were all")
    assert found[2].code == 2


def test_without_the_first_process_each_says_where_it_was_looked_for() -> None:
    port = free_port()
    with pytest.raises(UserError, match=rf"^process 1 on {HOST}: the first process does not answer at 127\.0\.0\.1:"):
        open_store(RendezvousInfo("127.0.0.1", port, 1, 2), 0.5)


def test_a_port_that_is_taken_is_refused_with_its_number() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^127\.0\.0\.1:{port} cannot be used .*; give another MASTER_PORT$"):
            open_store(RendezvousInfo("127.0.0.1", port, 0, 2), 1)


def test_the_facts_hold_versions_code_checkpoint_and_all_of_the_configuration_but_the_number_of_workers(
    tmp_path: Path,
) -> None:
    config = {"num_workers": 2, "batch_size": 64, "optimizer": {"lr": 0.1}}
    facts = preflight.run_facts(config, tmp_path / "last.ckpt", 1347)
    assert facts["config"] == {"batch_size": 64, "optimizer": {"lr": 0.1}}
    assert facts["torch"] == torch.__version__
    assert facts["training images"] == 1347
    assert facts["bytes of checkpoints/last"] is None
    (tmp_path / "last.ckpt").write_bytes(b"123")
    assert preflight.run_facts(config, tmp_path / "last.ckpt", 1347)["bytes of checkpoints/last"] == 3


def test_the_hash_of_the_code_changes_with_a_line_and_with_a_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = preflight.code_hash(tmp_path)
    assert preflight.code_hash(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = preflight.code_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, preflight.code_hash(tmp_path)}) == 3


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "job"}


@pytest.mark.parametrize(("by", "variables"), [("torchrun", TORCHRUN), ("srun", SLURM)])
def test_another_number_of_processes_than_were_started_is_refused_with_the_keys_to_give(
    monkeypatch: pytest.MonkeyPatch, by: str, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for devices, machines in ((1, 1), (8, 1), (4, 1)):
        trainer = cast(pl.Trainer, SimpleNamespace(world_size=devices * machines, num_nodes=machines))
        with pytest.raises(UserError, match=rf"^{by} started 8 .* give trainer\.devices=4 trainer\.num_nodes=2$"):
            preflight.check_process_count(trainer)
    preflight.check_process_count(cast(pl.Trainer, SimpleNamespace(world_size=8, num_nodes=2)))
    with pytest.raises(UserError, match=rf"^{by} started 8 processes, the trainer has 1: give trainer\.devices=4"):
        build_run(composed("data=digits", "backbone=resnet_thin", "trainer.accelerator=cpu"), {})


def test_slurms_processes_are_found_without_lightnings_requeueing_and_ntasks_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert preflight.cluster_environment() == []
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    (found,) = cast(Any, preflight.cluster_environment())
    assert (found.world_size(), found.auto_requeue) == (8, False)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match=r"^srun started 8 processes by --ntasks: give --nodes and --ntasks-per-node"):
        preflight.cluster_environment()
    for name, value in TORCHRUN.items():  # torchrun within a job of Slurm's
        monkeypatch.setenv(name, value)
    assert preflight.cluster_environment() == []


@pytest.mark.parametrize(("launcher", "shared"), [("basic", True), ("submitit_slurm", False)])
def test_submitit_gives_each_job_of_a_sweep_processes_of_its_own(
    monkeypatch: pytest.MonkeyPatch, launcher: str, shared: bool
) -> None:
    targets = {
        "basic": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "submitit_slurm": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    }
    settings = SimpleNamespace(mode=RunMode.MULTIRUN, launcher={"_target_": targets[launcher]})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: settings)
    assert is_sweep() is shared
    settings.mode = RunMode.RUN
    assert is_sweep() is False


@pytest.mark.usefixtures("alone")
def test_a_sum_that_is_wrong_or_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < preflight.time_all_reduce(torch.device("cpu"), 10) < 10
    answers = iter([RuntimeError("Timed out waiting 1000ms"), None])

    def all_reduce(values: torch.Tensor, async_op: bool) -> Any:
        def wait(timeout: Any) -> None:
            if error := next(answers):
                raise error
            values.mul_(3)

        return SimpleNamespace(wait=wait)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    with pytest.raises(UserError, match=r"an all-reduce fails: Timed out waiting 1000ms; try GLOO_SOCKET_IFNAME"):
        preflight.time_all_reduce(torch.device("cpu"), 1)
    with pytest.raises(UserError, match=r"^an all-reduce of ones over 1 processes gives 3\.0$"):
        preflight.time_all_reduce(torch.device("cpu"), 1)


def test_with_one_process_nothing_is_started_and_nothing_connected(tmp_path: Path) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    preflight.connect(trainer, dict, 1, 1, tmp_path / "last.ckpt")
    assert not dist.is_initialized()
    assert "MASTER_PORT" not in os.environ


def test_started_processes_that_do_not_end_by_themselves_are_ended() -> None:
    quick, slow = (subprocess.Popen(["sleep", seconds]) for seconds in ("0", "100"))
    started = time.monotonic()
    end_children([quick, slow], 1)
    assert 1 <= time.monotonic() - started < 10
    assert (quick.wait(10), slow.wait(10)) == (0, -9)

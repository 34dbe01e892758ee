"""Several processes by each launcher: one run folder, the same numbers; and when one of them dies, none waits."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ENVIRONMENT, ROOT
from tests.forked import Begun

HOST = socket.gethostname()
TINY = (
    "data=digits",
    "backbone=resnet_thin",
    "backbone.width=0.125",
    "views.size=8",
    "batch_size=256",  # 5 steps an epoch
    "probe=none",
    "online_knn=null",
    "num_workers=0",
    "log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
)
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")

# Does in one process at one step what FAULT says; the other then sits there as one does that waits for a GPU.
FAULTY = """
import os, signal, time
from unlabeled import distributed
from unlabeled.objective import Backbone, Batch, Objective, Output, Progress


class Faulty(Objective):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, progress: Progress) -> Output:
        fault, rank, step = os.environ.get("FAULT", "none:0:-1").split(":")
        if progress.step == int(step):
            self.fail(fault, distributed.rank() == int(rank))
        a, b = (self.backbone(view) for view in batch.views)
        return Output((a - b).float().pow(2).mean(), a.detach())

    def fail(self, fault: str, here: bool) -> None:
        if here and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if here and fault in ("error", "error_while_the_others_wait"):
            raise ValueError("a fault on purpose")
        if (here and fault == "hang") or (not here and fault == "error_while_the_others_wait"):
            time.sleep(1000)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    (tmp_path / "conf" / "objective" / "faulty.yaml").write_text("_target_: faulty.Faulty\n_convert_: all\n")
    return tmp_path


Started = Begun | subprocess.Popen[str]


def start(
    folder: Path, *overrides: str, launcher: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> Started:
    """``python train.py``, forked where no launcher starts it; Lightning starts the further ones by a new Python."""
    arguments = ["--config-dir=conf", *TINY, *overrides]
    paths = f"{ENVIRONMENT['PYTHONPATH']}:{folder}"
    given = os.environ | ENVIRONMENT | {"PYTHONPATH": paths} | (environment or {})
    if not launcher:
        return Begun(ROOT / "train.py", arguments, folder, given)
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: Started, seconds: float = 150) -> tuple[list[int | None], list[str]]:
    """Exit codes and what was printed; all must end within so many seconds, on an idle core it takes ten."""
    deadline = time.monotonic() + seconds
    try:
        printed = [process.communicate(timeout=deadline - time.monotonic())[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], printed


def by_hand(port: int, rank: int) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}


def by_slurm(port: int, rank: int) -> dict[str, str]:
    """What srun sets."""
    numbers = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_NNODES": 1, "SLURM_PROCID": rank}
    numbers |= {"SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_JOB_ID": 12345, "MASTER_PORT": port}
    names = {"SLURM_JOB_NAME": "job", "SLURM_NODELIST": "localhost"}
    return names | {name: str(number) for name, number in numbers.items()}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def end_of(folder: Path, name: str) -> dict[str, Any]:
    end: dict[str, Any] = torch.load(folder / "outputs" / name / "checkpoints" / "last.ckpt", weights_only=True)
    return end


def assert_same_weights(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["progress"] == theirs["progress"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name


def test_lightning_torchrun_and_slurm_make_the_same_run_in_one_folder_and_fsdp_nearly(folder: Path) -> None:
    codes, printed = finish(start(folder, "max_steps=3", "name=lightning"))
    codes_cut, printed_cut = finish(start(folder, "max_steps=3", "name=cut", "trainer.strategy=fsdp"))
    more, others = finish(start(folder, "max_steps=3", "name=torchrun", launcher=TORCHRUN))
    port = free_port()
    ranks = [start(folder, "max_steps=3", "name=slurm", environment=by_slurm(port, rank)) for rank in range(2)]
    last, slurm = finish(*ranks)
    assert codes + codes_cut + more + last == [0] * 5, printed + printed_cut + others + slurm
    for output in (*printed, *printed_cut, *others, "".join(slurm)):
        assert output.count("2 processes on 1 machine, all-reduce 12 MB in ") == 1
        assert output.count("no probe, or no test split") == 1
    assert sorted(path.name for path in (folder / "outputs").iterdir()) == ["cut", "lightning", "slurm", "torchrun"]
    lines = (folder / "outputs" / "lightning" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 1, 2, 3]  # the monitor's first look
    for name in ("torchrun", "slurm"):
        assert (folder / "outputs" / name / "metrics.jsonl").read_text() == lines
        assert_same_weights(end_of(folder, name), end_of(folder, "lightning"))
    for name, value in end_of(folder, "lightning")["state_dict"].items():
        torch.testing.assert_close(end_of(folder, "cut")["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_processes_that_were_given_different_values_are_refused_in_one_line_before_data_is_touched(
    folder: Path,
) -> None:
    port = free_port()
    lines = ("optimizer.lr=0.5", "optimizer.lr=0.25")
    ranks = [start(folder, line, "name=x", environment=by_hand(port, rank)) for rank, line in enumerate(lines)]
    codes, printed = finish(*ranks)
    assert codes == [2, 2]
    line = f"error: not as on process 0 on {HOST}: optimizer.lr is 0.25 and not 0.5 on process 1 on {HOST}\n"
    assert printed == [line, ""]
    assert not (folder / "outputs" / "x").exists()


def test_a_process_that_never_comes_is_missed_after_the_patience_given(folder: Path) -> None:
    codes, printed = finish(start(folder, "name=x", "preflight_seconds=2", environment=by_hand(free_port(), 0)))
    assert codes == [2]
    assert printed[0].startswith("error: process 1 of 2 missing after 2 s (preflight_seconds), there: process 0 on ")


def test_a_sweep_with_several_processes_is_refused_in_one_line(folder: Path) -> None:
    codes, printed = finish(start(folder, "seed=1,2", "name=two-${seed}", "-m"))
    assert codes == [2]
    assert printed[0].startswith("error: --multirun needs trainer.devices=1")
    assert len(printed[0].splitlines()) == 1


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["lightning", "torchrun"])
@pytest.mark.parametrize("fault", ["error", "error_while_the_others_wait"])
def test_an_error_in_one_process_ends_all_with_its_traceback(
    folder: Path, launcher: tuple[str, ...], fault: str
) -> None:
    codes, printed = finish(
        start(folder, "objective=faulty", "name=x", launcher=launcher, environment={"FAULT": f"{fault}:1:2"})
    )
    assert codes == [1]
    assert printed[0].count("ValueError: a fault on purpose\n") == 1
    assert 'raise ValueError("a fault on purpose")' in printed[0]
    assert printed[0].count("Traceback") == 1 + bool(launcher)  # torchrun shows its own
    cause = f"process 1 on {HOST} failed with ValueError: a fault on purpose"
    assert f"process 1 of 2 ends: {cause}. The same command starts anew: no checkpoint yet\n" in printed[0]


def test_an_error_in_the_first_process_ends_the_ones_that_it_started(folder: Path) -> None:
    fault = "error_while_the_others_wait:0:2"
    codes, printed = finish(start(folder, "objective=faulty", "name=x", environment={"FAULT": fault}))
    assert codes == [1]  # and no process holds the pipe any more, or reading would not have ended
    assert printed[0].count("ValueError: a fault on purpose\n") == 1


def test_after_a_killed_process_the_run_ends_at_once_and_goes_on_from_its_checkpoint_bit_for_bit(folder: Path) -> None:
    run = ("objective=faulty", "max_epochs=2")
    codes, printed = finish(start(folder, *run, "name=killed", environment={"FAULT": "kill:1:7"}))
    assert codes == [1]
    checkpoint = "outputs/killed/checkpoints/last.ckpt"
    line = f"process 0 of 2 ends: process 1 on {HOST} was killed by SIGKILL. The same command goes on from {checkpoint}"
    assert printed[0].splitlines()[-1] == line
    assert end_of(folder, "killed")["progress"]["step"] == 5
    codes, _ = finish(start(folder, *run, "name=killed"), start(folder, *run, "name=straight"))
    assert codes == [0, 0]
    assert end_of(folder, "killed")["progress"]["step"] == 10
    assert_same_weights(end_of(folder, "killed"), end_of(folder, "straight"))


def test_when_the_first_process_is_killed_the_others_end_too(folder: Path) -> None:
    codes, printed = finish(start(folder, "objective=faulty", "name=x", environment={"FAULT": "kill:0:2"}))
    assert codes == [-9]
    assert f"process 1 of 2 ends: process 1 on {HOST} lost another one" in printed[0]


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_process_whose_first_one_is_gone_ends_though_it_waits_and_nobody_reads_what_it_prints(folder: Path) -> None:
    first = start(folder, "objective=faulty", "name=x", environment={"FAULT": "hang:1:2"})
    metrics = folder / "outputs" / "x" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert first.poll() is None
        time.sleep(0.2)
    time.sleep(2)  # until it hangs, and is not in a message to the first
    (second,) = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
    first.kill()
    assert first.stdout is not None
    first.stdout.close()
    assert first.wait(10) == -9
    deadline = time.monotonic() + 60
    while is_alive(second) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not is_alive(second)


def test_a_process_that_hangs_ends_the_run_after_the_timeout_given(folder: Path) -> None:
    codes, printed = finish(
        start(folder, "objective=faulty", "name=x", "timeout_minutes=0.05", environment={"FAULT": "hang:1:2"})
    )
    assert codes == [1]
    assert "Timed out waiting 3000ms" in printed[0].splitlines()[-1]
    assert printed[0].splitlines()[-1].startswith(f"process 0 of 2 ends: process 0 on {HOST} failed with RuntimeError")
